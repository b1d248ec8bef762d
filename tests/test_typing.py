"""What a type checker says about the scripts of users."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RIGHT = """
import gymnasium
import keras_hub

import kerasrlhf as rlhf

lm = keras_hub.models.CausalLM.from_preset("gpt2_base_en")
actor = rlhf.ActorCritic.from_causal_lm(lm)
reward = rlhf.RewardModel.from_causal_lm(lm)
sampler = rlhf.Sampler(length=16, temperature=0.7)
kl = rlhf.AdaptiveKL(0.2, target=6.0, horizon=10_000)
ppo = rlhf.PPO(actor, reward, sampler=sampler, kl=kl, cliprange=0.2, entropy_coef=0.01)
ppo.compile("adam")
ppo.fit(rlhf.data.prompts(["once", "twice"], lm.preprocessor, batch_size=2))
rlhf.RLOO(actor, reward, sampler=sampler, kl=rlhf.FixedKL(0.05), group_size=4)
environment = rlhf.environment.TokenEnv(["once"], reward, lm, sampler)
rlhf.PPO(actor, environment, sampler=environment.sampler, kl=kl).fit(batch_size=2)
made = gymnasium.make("kerasrlhf/Token-v0", prompts=["once"], reward=reward, causal_lm=lm)
rlhf.GRPO(actor, made, sampler=sampler, kl=rlhf.FixedKL(0.05), group_size=4)
advantages, returns = rlhf.functional.gae([[1.0]], [[0.0]], [[True]], lam=0.9)
low: float = rlhf.evaluation.mean_interval([1.0, 3.0]).low
loss = rlhf.losses.IPOLoss(beta=0.1)
"""

# Each line is wrong in one way, and the checker's message about it holds the words.
WRONG = {
    'rlhf.Sampler(length="16")': 'Argument "length" to "Sampler"',
    "rlhf.Sampler(16, temp=0.7)": 'Unexpected keyword argument "temp" for "Sampler"',
    "rlhf.PPO(actor, reward, sampler=sampler, kl=kl, clip_range=0.2)": (
        'Unexpected keyword argument "clip_range" for "PPO"'
    ),
    "rlhf.PPO(actor, reward, sampler=sampler, kl=kl, entropy_bonus=0.01)": (
        'Unexpected keyword argument "entropy_bonus" for "PPO"'
    ),
    'rlhf.PPO(actor, reward, sampler=sampler, kl=kl, update_epochs="4")': (
        'Argument "update_epochs" to "PPO"'
    ),
    "rlhf.PPO(actor, reward, sampler=sampler, kl=0.2)": 'Argument "kl" to "PPO"',
    'rlhf.functional.gae([[1.0]], [[0.0]], [[True]], lam="0.9")': 'Argument "lam" to "gae"',
    "rlhf.losses.IPO": 'Module has no attribute "IPO"',
}
SET_UP = """
import kerasrlhf as rlhf

actor: rlhf.ActorCritic
reward: rlhf.RewardModel
sampler: rlhf.Sampler
kl: rlhf.FixedKL
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What mypy says of both scripts, as a user runs it: outside the checkout, without settings."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "right.py").write_text(RIGHT, encoding="utf-8")
    (folder / "wrong.py").write_text(SET_UP + "\n".join(WRONG) + "\n", encoding="utf-8")
    (folder / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache"]
    ran = subprocess.run(
        [*command, "--follow-imports", "silent", "--check-untyped-defs", "right.py", "wrong.py"],
        cwd=folder,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return ran.stdout.splitlines()


def test_a_correct_script_passes(messages):
    assert [line for line in messages if line.startswith("right.py")] == []


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_argument_is_rejected(line, messages):
    number = SET_UP.count("\n") + list(WRONG).index(line) + 1
    found = [text for text in messages if text.startswith(f"wrong.py:{number}: error")]
    assert found, f"nothing is said about {line}"
    assert WRONG[line] in found[0]


def test_the_package_has_the_marker_of_typed_packages():
    assert (ROOT / "kerasrlhf" / "py.typed").is_file()
