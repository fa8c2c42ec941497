"""A small decoder-only transformer that writes answers of a few tokens to prompts, and learns some.

Samples of one task share its prompt: it is read once, and every answer attends to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = dict[str, Any]


class Shape(NamedTuple):
    """Of prompts, of answers, and of the transformer; hashable, for jax.jit."""

    prompt_tokens: int  # the prompts' vocabulary
    prompt: int  # tokens of a prompt
    tokens: int  # the answers' vocabulary
    length: int  # tokens of an answer
    width: int = 48
    heads: int = 4
    layers: int = 2

    def number(self, answers: Any) -> Any:
        """Number answers (…, length) → (…) among all tokens**length."""
        return (answers * self.tokens ** np.arange(self.length)[::-1]).sum(-1)


def init(shape: Shape, seed: int) -> Params:
    """Draw parameters; the last layer is small, so that all answers are nearly as likely."""
    rng, width = np.random.default_rng(seed), shape.width

    def normal(*size: int, std: float | None = None) -> Any:
        return rng.normal(0, std or size[0] ** -0.5, size).astype(np.float32)

    layers = [
        {
            "qkv": normal(width, 3 * width),
            "out": normal(width, width, std=0.5 * width**-0.5),
            "up": normal(width, 2 * width),
            "down": normal(2 * width, width, std=0.5 * (2 * width) ** -0.5),
        }
        for _ in range(shape.layers)
    ]
    return {
        "prompt": normal(shape.prompt_tokens, width, std=0.3),
        # one token more, that says "begin"
        "answer": normal(shape.tokens + 1, width, std=0.3),
        "position": normal(shape.prompt + shape.length, width, std=0.3),
        "layers": layers,
        "head": normal(width, shape.tokens, std=0.02),
    }


def _norm(x: Any) -> Any:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def logits(params: Params, shape: Shape, prompts: Any, answers: Any) -> Any:
    """Predict every token and the next: prompts (tasks, prompt), the first tokens of answers
    (tasks, samples, t) → (tasks, samples, t + 1, tokens)."""
    begin = jnp.full((*answers.shape[:2], 1), shape.tokens)
    inputs = jnp.concatenate([begin, answers], -1)
    positions = params["position"]
    p = params["prompt"][prompts] + positions[: shape.prompt]  # (tasks, prompt, width)
    # (tasks, samples, t + 1, width)
    a = params["answer"][inputs] + positions[shape.prompt :][: inputs.shape[-1]]
    causal = jnp.tril(jnp.ones((inputs.shape[-1],) * 2, bool))

    def heads(x: Any, qkv: Any) -> Iterator[Any]:  # q, k, v: (…, heads, width / heads)
        for one in jnp.split(_norm(x) @ qkv, 3, -1):
            yield one.reshape(*x.shape[:-1], shape.heads, -1)

    def attention(*scores: Any) -> Any:
        scale = (shape.heads / shape.width) ** 0.5
        return jax.nn.softmax(scale * jnp.concatenate(scores, -1), -1)

    for layer in params["layers"]:
        q, k, v = heads(p, layer["qkv"])
        # All of a prompt sees all of it: it is given, not written.
        read = attention(jnp.einsum("tqhd,tkhd->thqk", q, k))
        p_seen = jnp.einsum("thqk,tkhd->tqhd", read, v).reshape(p.shape)
        q, k_own, v_own = heads(a, layer["qkv"])
        own = jnp.where(causal, jnp.einsum("tsqhd,tskhd->tshqk", q, k_own), -jnp.inf)
        read = attention(jnp.einsum("tsqhd,tkhd->tshqk", q, k), own)
        a_seen = jnp.einsum("tshqk,tkhd->tsqhd", read[..., : shape.prompt], v)
        a_seen += jnp.einsum("tshqk,tskhd->tsqhd", read[..., shape.prompt :], v_own)
        p, a = p + p_seen @ layer["out"], a + a_seen.reshape(a.shape) @ layer["out"]
        p, a = (x + jax.nn.gelu(_norm(x) @ layer["up"]) @ layer["down"] for x in (p, a))
    return _norm(a) @ params["head"]


def log_probs(params: Params, shape: Shape, prompts: Any, answers: Any) -> Any:
    """Sum log-probabilities of answers (tasks, samples, length) over their tokens."""
    all_log_p = jax.nn.log_softmax(logits(params, shape, prompts, answers[..., :-1]))
    return jnp.take_along_axis(all_log_p, answers[..., None], -1)[..., 0].sum(-1)


def sample(params: Params, shape: Shape, prompts: Any, uniforms: Any) -> tuple[Any, Any]:
    """Draw answers with random numbers (tasks, samples, length) → answers of that shape, and the
    mean entropy of an answer, by the chain rule over its tokens."""
    answers, entropy = jnp.zeros((*uniforms.shape[:2], 0), jnp.int32), jnp.zeros(())
    for t in range(shape.length):
        log_p = jax.nn.log_softmax(logits(params, shape, prompts, answers)[..., -1, :])
        entropy -= (jnp.exp(log_p) * log_p).sum(-1).mean()
        # The inverse of the distribution function.
        below = jnp.cumsum(jnp.exp(log_p), -1)  # (tasks, samples, tokens)
        tokens = (uniforms[..., t, None] * below[..., -1:] > below).sum(-1)
        answers = jnp.concatenate([answers, tokens[..., None].astype(jnp.int32)], -1)
    return answers, entropy


@partial(jax.jit, static_argnames="shape")
def supervise(
    shape: Shape, params: Params, prompts: Any, answers: Any, batches: Any, rates: Any
) -> tuple[Params, Any]:
    """Learn answers (examples, length) to prompts (examples, prompt): batches (steps, batch) with a
    learning rate each → parameters, losses (steps,)."""

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        (params, state), (chosen, rate) = carry, now

        def loss(params: Params) -> Any:
            return -log_probs(params, shape, prompts[chosen], answers[chosen][:, None]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optax.adam(rate).update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    carry = params, optax.adam(0.0).init(params)
    (params, _), losses = jax.lax.scan(step, carry, (batches, rates))
    return params, losses
