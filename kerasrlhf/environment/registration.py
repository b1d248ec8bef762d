"""The ids of the environments in Gymnasium's registry."""

from __future__ import annotations

import gymnasium

IDS = {
    "kerasrlhf/Token-v0": "kerasrlhf.environment.token_env:TokenEnv",
    "kerasrlhf/Response-v0": "kerasrlhf.environment.response_env:ResponseEnv",
    "kerasrlhf/Dialogue-v0": "kerasrlhf.environment.dialogue_env:DialogueEnv",
}
"""Where Gymnasium finds the environment of an id."""


def register() -> None:
    """Registers the environments; `import kerasrlhf` has done so.

    Example:
        >>> import gymnasium
        >>> rlhf.environment.register()
        >>> "kerasrlhf/Token-v0" in gymnasium.registry
        True
    """
    for name, entry_point in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry_point)
