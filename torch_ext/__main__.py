"""python -m torch_ext"""

import sys

from torch_ext._lazy import why_not_built

if __name__ == "__main__":
    if why := why_not_built():
        sys.exit(f"torch-ext: {why}")
    from torch_ext.cli import main

    main()
