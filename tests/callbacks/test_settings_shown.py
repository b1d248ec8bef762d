"""What callbacks have in common."""

import kerasrlhf as rlhf


def test_repr_shows_settings(tmp_path):
    callbacks = rlhf.callbacks
    folder = str(tmp_path)
    assert repr(callbacks.Resume(tmp_path, every=5)) == f"Resume(directory={folder!r}, every=5)"
    assert repr(callbacks.Samples(count=2, prompts=["a"])) == "Samples(count=2, prompts=['a'])"
    shown = repr(callbacks.TensorBoard(tmp_path, samples=0))
    assert shown == f"TensorBoard(log_dir={folder!r}, samples=0)"
