"""Options that can't go together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from onnxq.errors import RecipeError
from onnxq.options.table import AUTO, SEVERAL, listed

if TYPE_CHECKING:
    from onnxq.options.recipe import Recipe

FIXED = "fixed"
"""The mode of a generator that learns no more once images are made."""
HOW_TO_LEARN: dict[str, Any] = {
    "epochs": None,
    "lr": None,
    "optimizer": "adam",
    "loss": "outputs",
    "augment": (AUTO,),
}
"""Options that say nothing where nothing is learned, and their defaults."""

OF_DISTILLATION = (
    "samples", "batch_size", "epochs", "max_minutes", "lr", "loss", "augment", "seed", "data_free",
    "synthesis", "synthesis_losses",
)  # fmt: skip
"""Options that say how a float student is trained."""
INITS = ("file", "random")
"""Where its first weights come from."""


def check_contradictions(recipe: Recipe) -> None:
    """Raises RecipeError where two options can't go together."""
    _check_learned(recipe)
    _check_synthesis(recipe)
    _check_search(recipe)
    _check_float_activations(recipe)
    _check_learning(recipe)


def _check_learned(recipe: Recipe) -> None:
    """Raises RecipeError where what is to be learned can't be, or not together."""
    learns = recipe.learn
    for name in SEVERAL:
        values = getattr(recipe, name)
        alone = next((each for each in ("none", AUTO) if each in values), None)
        if alone and len(values) > 1:
            raise RecipeError(
                f"The option '{name}' is {listed(values)}; '{alone}' stands alone: remove it or "
                "the others."
            )
    if "thresholds" in learns and "steps" in learns:
        raise RecipeError(
            "The options 'learn' = 'thresholds' and 'learn' = 'steps' contradict each other, since "
            "both learn the same ranges; remove one of them."
        )
    if recipe.bias_centroids is not None and "weights" in learns:
        raise RecipeError(
            "The options 'learn' = 'weights' and 'bias_centroids' contradict each other, since "
            "biases are learned with the weights and share no centroids then; remove one of them."
        )
    if recipe.bias_centroids is not None and "biases" in learns:
        raise RecipeError(
            "The options 'learn' = 'biases' and 'bias_centroids' contradict each other, since "
            "biases that are learned one by one share no centroids; remove one of them."
        )
    if recipe.activation_bits is None and "thresholds" in learns:
        raise RecipeError(
            "The options 'learn' = 'thresholds' and 'activation_bits' = 'none' contradict each "
            "other, since float activations have no thresholds; remove one of them."
        )
    if "codebooks" in learns and not _has_codebook(recipe):
        raise RecipeError(
            "The option 'learn' = 'codebooks' needs layers with a codebook; set 'codebook' of the "
            "recipe or of some of its 'layers'."
        )


def _check_synthesis(recipe: Recipe) -> None:
    """Raises RecipeError where an option says how samples are made that are not made so."""
    for name, unset in (("synthesis", AUTO), ("synthesis_losses", None), ("generator_mode", FIXED)):
        if getattr(recipe, name) != unset and not recipe.data_free:
            raise RecipeError(
                f"The option '{name}' says how samples are made, and none are; set 'data_free', or "
                "leave it out."
            )
    if (recipe.synthesis_losses or {}).get("adversarial") and recipe.synthesis != "generator":
        raise RecipeError(
            "The loss 'adversarial' of 'synthesis_losses' is a generator's; set 'synthesis' to "
            "'generator', or leave it out."
        )
    if recipe.generator_mode != FIXED:
        _check_adversarial(recipe)


def _check_float_activations(recipe: Recipe) -> None:
    """Raises RecipeError where activations stay float and an option says how they are quantized."""
    if recipe.activation_bits is None and recipe.symmetric:
        raise RecipeError(
            "The options 'symmetric' and 'activation_bits' = 'none' contradict each other, since "
            "float activations have no range; remove one of them."
        )
    stated = [each.pattern for each in recipe.layers if each.activation_bits is not None]
    if recipe.activation_bits is None and stated:
        raise RecipeError(
            f"The options 'activation_bits' = 'none' and 'activation_bits' of the layers "
            f"'{stated[0]}' contradict each other; remove one of them."
        )


def _check_adversarial(recipe: Recipe) -> None:
    """Raises RecipeError where no generator, or no student, could go on learning."""
    if recipe.synthesis != "generator":
        raise RecipeError(
            "The option 'generator_mode' = 'adversarial' is a generator's; set 'synthesis' to "
            "'generator', or leave it out."
        )
    if set(recipe.learn) <= {"none", "rounding"}:
        raise RecipeError(
            f"The option 'generator_mode' = 'adversarial' needs a student that is learned by "
            f"gradients, and 'learn' is {listed(recipe.learn)}; learn 'steps' or 'weights', or "
            "leave the mode out."
        )
    if (recipe.synthesis_losses or {}).get("adversarial") == 0:
        raise RecipeError(
            "The options 'generator_mode' = 'adversarial' and a weight of 0 for the loss "
            "'adversarial' of 'synthesis_losses' contradict each other; remove one of them."
        )


def _check_learning(recipe: Recipe) -> None:
    """Raises RecipeError where an option says how to learn what is not learned."""
    learns = recipe.learn
    if learns == ("none",):
        for name, default in HOW_TO_LEARN.items():
            value = getattr(recipe, name)
            if value != default:
                found = listed(value) if isinstance(value, tuple) else f"'{value}'"
                raise RecipeError(
                    f"The options 'learn' = 'none' and '{name}' = {found} contradict each other; "
                    "remove one of them."
                )
    if isinstance(recipe.lr, dict) and "auto" not in learns:
        learned = {*learns, "biases"} if "weights" in learns else {*learns}
        kinds = [kind for kind in recipe.lr if kind not in learned]
        if kinds:
            raise RecipeError(
                f"The option 'lr' has a rate for {listed(kinds)}, and 'learn' is {listed(learns)}; "
                "remove the rate, or learn that too."
            )


def check_data(recipe: Recipe, data: object) -> None:
    """Raises RecipeError where there is a path of samples and they are to be made, or neither."""
    if data is None and not recipe.data_free:
        raise RecipeError("There are no samples; name a folder or a file, or set 'data_free'.")
    if data is not None and recipe.data_free:
        raise RecipeError(
            f"The option 'data_free' makes samples, and '{data}' holds some; leave out --data or "
            "--data-free."
        )


def check_distillation(recipe: Recipe, init: str) -> None:
    """Raises RecipeError where an option has no part in distillation, or means something else."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name not in OF_DISTILLATION and value != field.default:
            found = listed(value) if isinstance(value, tuple) else f"'{value}'"
            raise RecipeError(
                f"The option '{field.name}' = {found} has no part in distillation, which writes a "
                "float model; leave it out."
            )
    if isinstance(recipe.lr, dict):
        raise RecipeError(
            f"The option 'lr' has a rate for {listed(recipe.lr)}; distillation has one rate for "
            "all: give one number."
        )
    if init not in INITS:
        raise RecipeError(f"The option 'init' is '{init}'; expected {' or '.join(INITS)}.")


def check_generator_files(recipe: Recipe, load: object, save: object) -> None:
    """Raises RecipeError where a generator is read or written that there is none of."""
    option = "--generator" if load is not None else "--save-generator"
    if load is not None and save is not None:
        raise RecipeError(f"The generator of '{load}' is not changed; leave out --save-generator.")
    if (load is not None or save is not None) and not recipe.data_free:
        raise RecipeError(f"{option} is given, but samples are not made; add --data-free.")
    goes_on = recipe.generator_mode != FIXED
    if load is not None and (
        recipe.synthesis == "distilled" or (recipe.synthesis_losses is not None and not goes_on)
    ):
        raise RecipeError(
            f"The generator of '{load}' makes the samples as it was trained to; leave out "
            "--synthesis distilled and --synthesis-loss."
        )
    if save is not None and recipe.synthesis != "generator":
        raise RecipeError(
            "--save-generator is given, but no generator is trained; add --synthesis generator."
        )


def _check_search(recipe: Recipe) -> None:
    """Raises RecipeError where a search has two goals, or nothing to search."""
    if recipe.max_drop is not None and recipe.max_size is not None:
        raise RecipeError(
            "The options 'max_drop' and 'max_size' are two goals of one search; give one of them."
        )
    goal = "max_drop" if recipe.max_drop is not None else "max_size"
    if recipe.searches and isinstance(recipe.codebook, int):
        raise RecipeError(
            f"The options 'codebook' = '{recipe.codebook}' and '{goal}' contradict each other, "
            "since a search chooses the count of each layer; set 'codebook' to 'auto', or leave "
            "it out to search widths of codes alone."
        )


def _has_codebook(recipe: Recipe) -> bool:
    stated = any(each.codebook is not None for each in recipe.layers)
    return stated or recipe.codebook == AUTO or isinstance(recipe.codebook, int)
