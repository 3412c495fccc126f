"""A run of several workers whose first one is steered while it trains; `test_control.py` starts it.

    python steered_run.py CONFIG.yaml [--die-in-round R]

Asks for a new learning rate in round 0 and for a pause in round 2; goes on for two lockstep steps, then to the end.
Prints a JSON list: the lockstep steps made when it stood still.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path

from scene_distill.core.configs import load_config
from scene_distill.methods import find_method
from scene_distill.training.control import send, training_state
from scene_distill.training.loop import prepare
from scene_distill.training.workers import workers_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--die-in-round", type=int, default=-1)
    options = parser.parse_args()
    entry = find_method("momentum-gs")
    config = load_config(entry.config, options.config)
    run, made, stood_at = config.output_dir, [], []

    def still() -> int:
        while (training_state(run) or {}).get("state") != "paused":
            time.sleep(0.02)
        time.sleep(0.2)
        stood_at.append(len(made))
        return len(made)

    def steer() -> None:
        still()
        send(run, {"command": "step", "steps": 2})
        while len(made) < stood_at[0] + 2:
            time.sleep(0.02)
        still()
        send(run, {"command": "resume"})

    def listen(step) -> None:
        made.append(step.round)
        if len(made) == 1:
            send(run, {"command": "set", "name": "lr_features", "value": [0.05, 0.01]})
        if made.count(2) == 1 and step.round == 2 and options.die_in_round < 0:
            send(run, {"command": "pause"})
        if step.round == options.die_in_round:
            raise KeyboardInterrupt

    threading.Thread(target=steer, daemon=True).start()
    with workers_of(entry.name, config) as workers:
        training = prepare(entry.name, config, entry.build, workers)
        training.begin()
        training.train(listen)
    sys.stdout.write(json.dumps(stood_at) + "\n")


if __name__ == "__main__":
    main()
