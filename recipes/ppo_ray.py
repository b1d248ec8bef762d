"""PPO on the machines of a Ray cluster: the recipe for one machine, in every worker.

    pip install ".[cluster]"
    python recipes/ppo_ray.py --workers 2 --options "--prompts /shared/prompts.jsonl \\
        --reward my_reward.py:score --output /shared/run"

Ray starts the workers and, if one of them is lost, all of them again. They then continue from the
last state in `output`, a folder that all machines share. Without a cluster Ray starts one on this
machine.
"""

import dataclasses
import os
import pathlib
import shlex

from kerasrlhf.cli.recipe import check_ranges, run


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a policy with PPO on a Ray cluster.

    Args:
        options: Those of recipes/ppo.py; `--strategy workers --resume` is added.
        workers: Processes that train together.
        use_gpu: Whether each worker has a GPU.
        max_failures: How often all workers are started again after a failure.
        storage: A folder for what Ray itself writes.
    """

    options: str = "--preset smoke"
    workers: int = 2
    use_gpu: bool = False
    max_failures: int = 1
    storage: pathlib.Path = pathlib.Path("runs/ray")

    def __post_init__(self):
        check_ranges(self, zero=["max_failures"])


def main(config):
    # Only here: `--help` needs no Ray.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    options = [*shlex.split(config.options), "--strategy", "workers", "--resume"]
    TensorflowTrainer(
        work,
        train_loop_config={"options": options, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu),
        run_config=RunConfig(
            storage_path=str(config.storage.absolute()),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    ).fit()


def work(settings):
    """Runs the recipe in a worker, whose `TF_CONFIG` Ray has set."""
    from kerasrlhf.cli import commands

    os.chdir(settings["folder"])
    try:
        commands.main(["ppo", *settings["options"]])
    except SystemExit as stop:
        if stop.code:
            # To Ray a worker that exits is one that has finished.
            raise RuntimeError(f"The recipe ended with exit code {stop.code}.") from stop


if __name__ == "__main__":
    run(main, Config)
