"""SLAP's habit: `python train.py objective=slap data.train=pairs.csv` is `antiphon train objective=slap ...`."""

import sys

from antiphon.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
