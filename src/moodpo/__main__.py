"""`python -m moodpo`, and what `accelerate launch -m moodpo` runs."""

from moodpo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
