"""Gymnasium environments of prompts and rewards, registered as `kerasrlhf/Token-v0` and so on.

They need the extra `environment`. PPO and the other on-policy trainers take one in place of a
reward, and agents of other libraries act in it.
"""

import importlib.util
import typing

if typing.TYPE_CHECKING or importlib.util.find_spec("gymnasium") is not None:
    from kerasrlhf.environment.dialogue_env import DialogueEnv
    from kerasrlhf.environment.registration import register
    from kerasrlhf.environment.response_env import ResponseEnv
    from kerasrlhf.environment.token_env import TokenEnv

    register()
else:

    def __getattr__(name: str) -> typing.Any:
        """Raises an `ImportError` for a class that needs Gymnasium, which is not installed."""
        if name in __all__:
            raise ImportError(
                f"`rlhf.environment.{name}` needs the package gymnasium. Run "
                '`pip install "kerasrlhf[environment]"`.'
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["DialogueEnv", "ResponseEnv", "TokenEnv", "register"]
