"""Time PPO iterations of TRL on a randomly initialized GPT-2: one JSON line on stdout.

Needs an environment of its own:

    pip install torch==2.13.0 trl==1.12.0 transformers datasets accelerate pandas

An iteration is sampling, scoring, advantages, and `ppo-epochs * mini-batches` optimizer steps, with
a policy, a reference, a value network and a reward model.
"""

import tempfile

import datasets
import peer
import tokenizers
import torch
import transformers
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Marks(transformers.TrainerCallback):
    """Marks the clock at the start of training and at the end of every iteration."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.mark()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.mark()


def build_tokenizer(vocabulary):
    """A word for every id: `t1` ends a text, and the last id is padding."""
    words = [f"t{index}" for index in range(vocabulary - 1)] + ["<pad>"]
    model = tokenizers.models.WordLevel(
        {word: index for index, word in enumerate(words)}, unk_token=words[0]
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=words[1], pad_token=words[-1], padding_side="left"
    )


def build_networks(args, padding):
    """Policy and reference, then value network and reward model."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.width,
        vocab_size=args.vocabulary,
        pad_token_id=padding,
        num_labels=1,
        **dropout,
    )
    language = [transformers.GPT2LMHeadModel(config) for _ in range(2)]
    return language + [transformers.GPT2ForSequenceClassification(config) for _ in range(2)]


def build_config(args, folder):
    return PPOConfig(
        output_dir=folder,
        # With gradient accumulation TRL would skip optimizer steps, so a device batch is a rollout.
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=args.batch,
        total_episodes=args.batch * args.iterations,
        response_length=args.response,
        num_ppo_epochs=args.ppo_epochs,
        num_mini_batches=args.mini_batches,
        temperature=1.0,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
        save_strategy="no",
        report_to=[],
    )


def main():
    args = peer.parse_args(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer(args.vocabulary)
    policy, reference, value, reward = build_networks(args, tokenizer.pad_token_id)
    rows = [row for batch in peer.prompts(args) for row in batch]
    prompts = datasets.Dataset.from_dict({"input_ids": rows})
    clock = peer.Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=build_config(args, folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            value_model=value,
            reward_model=reward,
            train_dataset=prompts,
            eval_dataset=prompts.select(range(args.batch)),
            callbacks=[Marks(clock)],
        )
        trainer.train()
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    peer.report("trl", args, clock.seconds(), parameters_m=round(parameters / 1e6, 2))


if __name__ == "__main__":
    main()
