"""`python -m dmae` is the `dmae` command (and `accelerate launch -m dmae evaluate …` its multi-process form)."""

from dmae.cli import main

if __name__ == "__main__":
    main()
