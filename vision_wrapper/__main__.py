"""`python -m vision_wrapper` is the command line."""

from vision_wrapper.cli import main

if __name__ == "__main__":
    main()
