"""The implicit reward model: a language model trained on outcomes alone, whose log-ratio to its start rewards tokens.

What lives here is the model; its targets are those of an outcome model, and the loop is that of every kind.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from prm_core.errors import InputError
from prm_core.models.causal import as_mask, check_causal
from prm_core.models.chains import ChainBatch
from prm_core.models.likelihood import reduce_by_step
from prm_core.models.loading import load_pretrained, load_tokenizer, pick_device
from prm_core.models.marks import give_rows
from prm_core.scoring.reward import REWARD_MODELS, Reading, RewardModel, mean_over_chain
from prm_core.scoring.surprisal import CHUNK

REFERENCE = "reference"
BETA = 0.05


@REWARD_MODELS.register("implicit")
class ImplicitRewardModel(RewardModel):
    """Rewards r_t = beta · log(network(y_t) / reference(y_t)) of the tokens a policy wrote, in float32.

    The logit of a slot is the sum of the rewards of its chain up to there, Q = beta · log E exp(r / beta), where r is
    the reward of the whole chain and the mean is over the reference's continuations of that prefix. So the logit of a
    chain's last step is what outcomes train, and a step's process reward is the difference of two slots, Q_k - Q_(k-1).
    Scorers report sigmoid(Q_k): P(right) of the chain, were it to end there, on the scale the model is trained on and
    alike for every k; a step alone has no probability in this model, only `step_rewards`.

    Observations and the end-of-sequence token have no reward: no policy writes the one, no encoded chain holds the
    other. The vocabulary's logits exist at written tokens only, and in backward passes a chunk at a time.

    Args:
        network: a causal LM.
        reference: the causal LM it started from; frozen, and in eval mode whatever the model's mode is.
        encoder: the `EncoderConfig` it is trained with, as a dict.
        beta: scale of the log-ratio.

    Source: Yuan et al. 2024, "Free Process Rewards without Process Labels", proposition 3.1 and the cross-entropy
    loss; Cui et al. 2025, "Process Reinforcement through Implicit Rewards" (beta).
    """

    kind = "implicit"

    def __init__(
        self, network: PreTrainedModel, reference: PreTrainedModel, encoder: dict[str, Any], beta: float
    ) -> None:
        super().__init__(network, encoder)
        self.reference = reference.requires_grad_(False).eval()
        self.beta = beta

    @property
    def head(self) -> nn.Module:
        """Nothing: all layers came with the language model."""
        return nn.ModuleList()

    @classmethod
    def from_backbone(
        cls, path: str, *, encoder: dict[str, Any], dtype: str, device: str, surprisal: bool = False, beta: float = BETA
    ) -> Self:
        """A new model on a causal LM (folder or hub id), without an opinion: all its rewards are 0.

        Raises InputError when the model does not load, is not causal, its logits are more than its output layer's,
        beta is not positive, or a surprisal is asked for.
        """
        if surprisal:
            raise InputError("an implicit model takes no surprisal term, the tokens' probabilities are what it is made "
                             "of; take implicit out of models.surprisal")
        if not beta > 0:
            raise InputError(f"beta is {beta}; the scale of an implicit model's log-ratio must be above 0 "
                             f"(the papers: {BETA})")
        network = load_pretrained(AutoModelForCausalLM, path, dtype=dtype, device="cpu")
        if encoder.get("renderer", 1) > 1:
            give_rows(network, load_tokenizer(path), encoder["separator"])
        # A path on this machine: the same model must be the same folder wherever it is trained.
        network.config._name_or_path = ""
        check_causal(network.base_model, path)
        check_logits(network, path)
        return cls(network, copy.deepcopy(network), encoder, beta).to(pick_device(device)).eval()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the network; dropout in the reference would be noise in every reward."""
        super().train(mode)
        self.reference.eval()
        return self

    def token_rewards(self, batch: ChainBatch) -> Tensor:
        """r_t of each written token, 0 elsewhere: (batch, seq). The network's gradient goes through it."""
        rows, columns = (batch.steps >= 0).nonzero(as_tuple=True)
        before = columns - 1 if batch.previous is None else batch.previous[rows, columns]
        targets = batch.ids[rows, columns]
        own = _logprobs(self.network, batch, rows, before, targets)
        with torch.no_grad():
            expected = _logprobs(self.reference, batch, rows, before, targets)
        rewards = own.new_zeros(batch.ids.shape)
        rewards[rows, columns] = self.beta * (own - expected)
        return rewards

    def step_rewards(self, batch: ChainBatch) -> Tensor:
        """Process reward of each slot's step, the sum over its tokens: (batch, slots), 0 where there is no step."""
        return reduce_by_step(self.token_rewards(batch), batch.steps, batch.ends.shape[1], "sum")

    def forward(self, batch: ChainBatch) -> Tensor:
        """Sum of the rewards of each slot's chain up to and with its step: (batch, slots), undefined where there is no
        step, 0 for a bare prompt."""
        rewards = self.step_rewards(batch)
        if batch.lineage is None:
            return rewards.cumsum(1)
        # Not a matrix product: reduced precision would round it.
        return (rewards[:, None, :] * batch.lineage).sum(-1)

    def judge(self, batch: ChainBatch, hidden: Tensor | None = None) -> Reading:
        states = self.hidden(batch) if hidden is None else hidden
        return Reading(self(batch), mean_over_chain(states, batch), None, None)

    def save_pretrained(self, folder: str | Path) -> None:
        """A standard Hugging Face causal-LM folder, safetensors, with the reference as another one inside."""
        self.network.config.prm = self.settings(surprisal=False, beta=self.beta)
        self.network.save_pretrained(folder)
        self.reference.save_pretrained(Path(folder) / REFERENCE)

    @classmethod
    def read(cls, path: str, settings: dict[str, Any], dtype: str) -> Self:
        beta = settings.get("beta")
        if not isinstance(beta, int | float) or not beta > 0:
            raise InputError(f"{path}/config.json: prm.beta is {beta!r}, not a number above 0; train the model again")
        folder = Path(path) / REFERENCE
        if not folder.is_dir():
            raise InputError(f"{path}: no folder {REFERENCE} with the weights the implicit model started from; copy "
                             "the model's folder whole")
        network, reference = (load_pretrained(AutoModelForCausalLM, str(part), dtype=dtype, device="cpu")
                              for part in (path, folder))
        if network.config.vocab_size != reference.config.vocab_size:
            raise InputError(f"{path}: the model has {network.config.vocab_size} tokens and its reference "
                             f"{reference.config.vocab_size}; both must have the same tokenizer")
        return cls(network, reference, settings["encoder"], float(beta))


def _logprobs(network: PreTrainedModel, batch: ChainBatch, rows: Tensor, before: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of tokens, (tokens,) float32.

    Args:
        network: a causal LM.
        batch: the rows they stand in.
        rows, before: where the token before each stands.
        targets: the tokens.
    """
    hidden = network.base_model(
        input_ids=batch.ids, attention_mask=as_mask(batch.mask, network.base_model), position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state[rows, before]
    head = network.get_output_embeddings()
    # Logits of a chunk live until its log-probabilities are known, and are computed again for its gradient.
    return torch.cat([
        checkpoint(_chunk_logprobs, head, hidden[start : start + CHUNK], targets[start : start + CHUNK],
                   use_reentrant=False, preserve_rng_state=False)
        for start in range(0, max(len(targets), 1), CHUNK)
    ])


def _chunk_logprobs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


@torch.inference_mode()
def check_logits(network: PreTrainedModel, name: str) -> None:
    """Raises InputError when the network's logits are not what its output layer makes of its last hidden states."""
    ids = torch.arange(8, device=network.device)[None] % network.config.vocab_size
    hidden = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
    own, whole = network.get_output_embeddings()(hidden).float(), network(input_ids=ids, use_cache=False).logits.float()
    # A cap of 30 changes nothing that a few tokens of a model with small weights would show.
    capped = getattr(network.config, "final_logit_softcapping", None)
    if capped or own.shape != whole.shape or not torch.allclose(own, whole, rtol=1e-5, atol=1e-5):
        raise InputError(f"model {name}: {type(network).__name__} scales or caps its logits after the output layer, "
                         "which implicit models do not do; name another architecture (Llama, Qwen, Mistral, …)")
