"""Time PPO iterations of tunix on a randomly initialized Qwen 2: one JSON line on stdout.

Needs an environment of its own:

    pip install google-tunix==0.1.7

tunix has no GPT-2. The decoder has no grouped-query heads and a SwiGLU of 8/3 of the width, so that
a layer has as many weights as one of GPT-2's, `12 width^2`. There are a policy, a reference, a
critic and a reward model. An iteration is one rollout of `batch` prompts, then
`ppo-epochs * mini-batches` optimizer steps of policy and critic.
"""

import os
import warnings

import peer


class Numbers:
    """A tokenizer of token ids that are written as numbers."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def encode(self, text, **kwargs):
        return [int(number) for number in text.split()]

    def decode(self, ids, **kwargs):
        return " ".join(str(int(index)) for index in ids)

    def bos_id(self):
        return 0  # tunix adds no start token if its id is 0

    def eos_id(self):
        return 1

    def pad_id(self):
        return self.vocabulary - 1


def randomized(model, seed):
    """Samples every matrix again as GPT-2 does, from N(0, 0.02^2)."""
    import jax
    from flax import nnx

    state = nnx.state(model, nnx.Param)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    for index, (leaf, key) in enumerate(zip(leaves, keys, strict=True)):
        if leaf.ndim > 1:
            leaves[index] = 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
    nnx.update(model, jax.tree.unflatten(structure, leaves))
    return model


def build_networks(args):
    """Policy, reference, critic and reward model."""
    import jax.numpy as jnp
    from flax import nnx
    from tunix.models.qwen2 import model as qwen2
    from tunix.rl import utils

    def decoder(seed, tied):
        config = qwen2.ModelConfig(
            num_layers=args.layers,
            num_heads=args.heads,
            num_kv_heads=args.heads,
            head_dim=args.width // args.heads,
            embed_dim=args.width,
            hidden_dim=8 * args.width // 3,
            vocab_size=args.vocabulary,
            use_tied_embedding=tied,
            rope_theta=10_000,
            norm_eps=1e-6,
            dtype=jnp.float32,
        )
        return qwen2.Qwen2(config, rngs=nnx.Rngs(seed))

    def scorer(seed):
        # The scalar head takes the place of `lm_head`, which models with tied embeddings lack.
        return randomized(utils.create_critic_model(decoder(seed, tied=False)), seed)

    policy, reference = (randomized(decoder(0, tied=True), 0) for _ in range(2))
    return policy, reference, scorer(1), scorer(2)


def build_cluster(args, networks):
    import optax
    from jax.interpreters import pxla
    from tunix.rl import rl_cluster
    from tunix.rl.rollout import base_rollout

    policy, reference, critic, reward = networks
    updates = args.iterations * args.ppo_epochs * args.mini_batches
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adam(1e-5),
        critic_optimizer=optax.adam(1e-5),
        mini_batch_size=args.batch,
        train_micro_batch_size=args.batch // args.mini_batches,
        rollout_micro_batch_size=args.batch,
        compute_logps_micro_batch_size=args.batch,
        max_steps=updates,
        eval_every_n_steps=updates + 1,
    )
    # The learner takes this as the micro-batches of a rollout, the trainers as those of an
    # optimizer step. Trainers copy it when the cluster is built: until then it is None, which makes
    # a step per micro-batch.
    micro_batches = training.gradient_accumulation_steps
    training.gradient_accumulation_steps = None
    mesh = pxla.thread_resources.env.physical_mesh
    cluster = rl_cluster.RLCluster(
        actor=policy,
        reference=reference,
        critic=critic,
        reward=reward,
        tokenizer=Numbers(args.vocabulary),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=base_rollout.RolloutConfig(
                max_prompt_length=args.prompt,
                max_tokens_to_generate=args.response,
                kv_cache_size=args.prompt + args.response,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[-1],  # every response has the full length
            ),
        ),
    )
    cluster.cluster_config.training_config.gradient_accumulation_steps = micro_batches
    return cluster


def build_learner(args, cluster, clock):
    import jax
    from flax import nnx
    from tunix.rl.ppo import ppo_learner

    class Learner(ppo_learner.PPOLearner):
        """Marks the clock once the updates of an iteration have been computed."""

        def train(self, *positional, **named):
            clock.mark()
            return super().train(*positional, **named)

        def _run_global_step(self, *positional, **named):
            super()._run_global_step(*positional, **named)
            for trainer in (self.rl_cluster.actor_trainer, self.rl_cluster.critic_trainer):
                jax.block_until_ready(nnx.state(trainer.model))
            clock.mark()

    config = ppo_learner.PPOConfig(num_iterations=args.ppo_epochs, beta=0.05)
    return Learner(rl_cluster=cluster, ppo_config=config, reward_fns=None)


def main():
    args = peer.parse_args(__doc__)
    # Before jax counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    warnings.filterwarnings("ignore")
    import jax
    import numpy as np
    from flax import nnx

    networks = build_networks(args)
    weights = jax.tree.leaves(nnx.state(networks[0], nnx.Param))
    parameters = sum(weight.size for weight in weights)
    cluster, clock = build_cluster(args, networks), peer.Clock()
    texts = [[" ".join(map(str, row)) for row in batch] for batch in peer.prompts(args)]
    learner = build_learner(args, cluster, clock)
    learner.train([{"prompts": np.array(batch)} for batch in texts])
    expected = args.iterations * args.ppo_epochs * args.mini_batches
    if cluster.actor_trainer.train_steps != expected:
        raise RuntimeError(
            f"Expected {expected} updates. Received: {cluster.actor_trainer.train_steps}."
        )
    peer.report("tunix", args, clock.seconds(), parameters_m=round(parameters / 1e6, 2))


if __name__ == "__main__":
    main()
