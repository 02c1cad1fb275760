"""Makes the torchvision of PyPI importable beside a CPU build of torch, in this environment.

It is built against a torch with CUDA. Beside another one its compiled operators do not load, and
its import stops at two of them that have no schema: they get one here. Calling them fails as
before. Safe to repeat.
"""

import importlib.metadata
import pathlib

SCHEMAS = """
if not _has_ops():  # added by torch_ext's Makefile: the import asks for these schemas
    for _name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
"""


def main() -> None:
    """Add the schemas where torchvision loads its operators."""
    place = importlib.metadata.distribution("torchvision").locate_file("torchvision/extension.py")
    extension = pathlib.Path(str(place))
    text = extension.read_text(encoding="utf-8")
    if SCHEMAS not in text:
        extension.write_text(text + SCHEMAS, encoding="utf-8")


if __name__ == "__main__":
    main()
