"""Tensors of every dtype and layout: their bits, and whose memory they are in."""
