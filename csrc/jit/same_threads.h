// A question of plain TorchScript: do kernels run with as many threads as now?
//
// Kernels that split their work among threads may sum in another order with another number of them,
// and in parts not in the one they would have had in the whole: mobilenet sliced with one thread
// has other bits with two. TorchScript cannot ask for the number, but a sum tells: over more than
// twice the elements that are worth a thread, times threads, torch adds up a share in each thread,
// and then the shares. Of numbers that cancel out the sum is nothing but what was rounded, and with
// other shares that is something else. Two sums of 512 numbers each, repeated without memory, tell
// all numbers of threads up to 128 apart (test_torchscript_slice.py). They also tell some kinds of
// processors apart. A question takes about ten microseconds.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

namespace torch_ext::jit {

// A bool in front of the node.
torch::jit::Value* AskForThreads(torch::jit::Node* node);

}  // namespace torch_ext::jit
