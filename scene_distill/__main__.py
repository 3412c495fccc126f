"""`python -m scene_distill` is `scene-distill`."""

from scene_distill.cli.main import main

if __name__ == "__main__":
    main()
