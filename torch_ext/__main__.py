"""python -m torch_ext"""

from torch_ext.cli import main

if __name__ == "__main__":
    main()
