"""The public names. A change here is a change of the contract: it belongs in CHANGELOG.md."""

import inspect
import types

import pytest

import kerasrlhf as rlhf
from kerasrlhf import functional

NAMES = {
    rlhf: """
        RLHF ActorCritic RewardModel RewardEnsemble ProcessRewardModel
        PPO RLOO GRPO REINFORCEPlusPlus OnlineDPO OnPolicyTrainer
        Sampler KLController FixedKL AdaptiveKL
        RewardShaping LanguageModeling PromptPrediction CriticWarmup RolloutMemory
        DPO IPO KTO ORPO DirectTrainer
        Rollout Experience TokenStats
        load_reward RewardPool BestOfN best_of_n best_of_n_kl
        applications callbacks cluster data environment evaluation functional losses metrics
        presets tasks __version__
    """,
    rlhf.functional: """
        baselines direct_losses logprobs masking on_policy_losses preferences returns
        kl policy_losses value_losses
        zero_outside masked_sum masked_mean masked_variance whiten
        response_mask last_true_mask last_true loss_weights
        token_logprobs token_entropy response_logprobs k1 k2 k3
        token_rewards discounted_sums gae leave_one_out group_mean group_normalized
        clipped_policy_loss policy_gradient_loss importance_weights response_weights
        clipped_value_loss critic_warmup_loss explained_variance
        bradley_terry best_of_k plackett_luce squared_sum accuracy agreement lead
        implicit_reward ipo kto log_odds orpo
    """,
    rlhf.applications: "Stage Table TaskRun read_records",
    rlhf.callbacks: "Resume Samples TensorBoard",
    rlhf.cluster: "Worker check_distribution is_chief replicas strategy worker",
    rlhf.data: """
        demonstrations preferences unpaired_preferences prompts stepwise
        read Stream to_tfds split mix records dialogue ChatTemplate tokenize detokenize
        TokenizedDataset Report
        audit AuditReport Finding clean Cleaned CleanReport label_noise LabelNoise
        augment Augmented AugmentReport comparisons label Labeling
    """,
    rlhf.environment: "DialogueEnv ResponseEnv TokenEnv register",
    rlhf.evaluation: """
        optimum grpo_optimum
        Interval mean_interval fraction_interval bootstrap_interval measure choice_logprobs
        PairAccuracy preference_accuracy accuracy_by_group CalibrationBin calibration
        negative_log_likelihood perplexity distinct_n
    """,
    rlhf.losses: """
        PreferenceLoss BradleyTerry BestOfK PlackettLuce StepCrossEntropy IPOLoss KTOLoss ORPOLoss
    """,
    rlhf.metrics: "PreferenceAccuracy PreferenceMargin",
    rlhf.presets: "TINY_STORIES",
    rlhf.tasks: """
        Task Sentiment Classification NER Summarization Dialogue Arithmetic
        sentiment classification ner summarization dialogue arithmetic rules stories
    """,
}
FOLDERS = [module for module in NAMES if hasattr(module, "__all__")]


def defined_in(module):
    """The public names of a file without `__all__`: classes, functions and constants of its own."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) == module.__name__ or name.isupper())
    ]


def public(module):
    return module.__all__ if hasattr(module, "__all__") else defined_in(module)


def short(module):
    return module.__name__


@pytest.mark.parametrize("module", NAMES, ids=short)
def test_public_names(module):
    assert sorted(public(module)) == sorted(NAMES[module].split())


@pytest.mark.parametrize("module", NAMES, ids=short)
def test_public_names_exist_once_and_are_documented(module):
    names = public(module)
    assert len(names) == len(set(names))
    undocumented = [
        name
        for name in names
        if not isinstance(getattr(module, name), str) and not inspect.getdoc(getattr(module, name))
    ]
    assert not undocumented


@pytest.mark.parametrize("module", FOLDERS, ids=short)
def test_the_list_is_complete(module):
    """Every public class and function that a folder imports is in its `__all__`."""
    shown = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert shown <= set(module.__all__)


def test_functions_are_the_same_in_their_module_and_in_functional():
    modules = [getattr(functional, name) for name in functional.__all__]
    for module in filter(inspect.ismodule, modules):
        for name in defined_in(module):
            function = getattr(module, name)
            if inspect.isfunction(function):
                assert name in functional.__all__
                assert getattr(functional, name) is function


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("kl", "k1 k2 k3 ESTIMATORS"),
        ("policy_losses", "clipped_policy_loss policy_gradient_loss importance_weights"),
        ("value_losses", "clipped_value_loss critic_warmup_loss explained_variance"),
    ],
)
def test_functions_are_found_by_the_name_of_their_idea(address, names):
    for name in names.split():
        assert hasattr(getattr(rlhf.functional, address), name)


def test_no_public_name_means_two_things():
    """A trainer, its loss and a callback have different names."""
    owners = {}
    for module in NAMES:
        for name in public(module):
            value = getattr(module, name)
            if inspect.isclass(value):
                owners.setdefault(name, set()).add(value)
    assert not {name: found for name, found in owners.items() if len(found) > 1}


def test_recipes_reach_cli_and_files_which_are_not_part_of_the_public_names():
    for name in ("cli", "files"):
        assert inspect.ismodule(getattr(rlhf, name))
        assert name not in rlhf.__all__
