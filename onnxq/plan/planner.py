"""The planner: from a normalised model and a recipe to the plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.operators import TABLE, never_negative
from onnxq.load.float_types import halved_constants
from onnxq.options.recipe import LayerOverride, Recipe, nearest_name
from onnxq.options.table import Target
from onnxq.plan.layers import (
    EXCLUDED,
    WIDE,
    Layer,
    find_layers,
    first_and_last,
    for_first_and_last,
    retrained_layers,
    spec_of,
)
from onnxq.plan.regions import QuantizationPoint, Regions, layer_inputs, wide_tensors
from onnxq.plan.size import growing_layers
from onnxq.plan.spec import (
    BYTE_BITS,
    INT4_BITS,
    SATURATION_BITS,
    Compute,
    LayerSpec,
    Plan,
    TensorSpec,
    codebook_refusal,
    packing_refusal,
)

INT4_CODEBOOK = "codebook indices stay packed: INT4 tensors hold integer weights"


def make_plan(
    model: ir.Model,
    recipe: Recipe,
    infinite: frozenset[str] = frozenset(),
    fallback: frozenset[str] = frozenset(),
    *,
    smaller: bool = False,
) -> Plan:
    """The plan of a recipe for a model: one spec per layer and per quantized tensor.

    Args:
        model: the normalised float model (the teacher); it isn't changed.
        recipe: the options.
        infinite: names of tensors with NaN or infinities, which have no range.
        fallback: names of tensors that need more than 8 bits.
        smaller: whether layers whose integer form takes no fewer bytes stay float, unless the
            recipe has settings for them.

    Raises:
        RecipeError: a pattern of the recipe matches no layer.
    """
    found, left_alone = find_layers(model.graph)
    check_patterns(recipe, found, left_alone)
    wanted = [layer for layer in found if not _override(recipe, layer).keep_float]
    excluded = [layer for layer in found if layer not in wanted]
    left_alone |= {str(layer.node.name): EXCLUDED for layer in excluded}
    retrained = retrained_layers(excluded, wanted) if "float-layers" in recipe.learn else {}
    left_alone |= {name: spec.reason for name, spec in retrained.items()}
    check_target(recipe, wanted, first_and_last(found))

    def plan_of(layers: Sequence[Layer]) -> Plan:
        return _plan_of(model.graph, found, layers, recipe, infinite, fallback)

    if smaller:
        stated = {each.node for each in wanted if _is_stated(recipe, each)}
        grown = growing_layers(model.graph, wanted, plan_of, stated, halved_constants(model).keys())
        left_alone |= grown
        wanted = [layer for layer in wanted if layer.node.name not in grown]
    return replace(plan_of(wanted), left_alone=left_alone, float_layers=retrained)


def _is_stated(recipe: Recipe, layer: Layer) -> bool:
    """Whether the recipe has settings for this layer."""
    return bool(recipe.stated_for(str(layer.node.name), layer.node.op_type))


def _plan_of(
    graph: ir.Graph,
    found: list[Layer],
    wanted: Sequence[Layer],
    recipe: Recipe,
    infinite: frozenset[str],
    fallback: frozenset[str],
) -> Plan:
    """The plan that quantizes some of the layers found."""
    first_last = first_and_last(found)
    if recipe.activation_bits is None:
        return _weight_only_plan(wanted, first_last, recipe)
    # Tensors that fewer bits are too few for get 8, those that 8 are too few for stay float.
    kept_at_8_bits = fallback if recipe.activation_bits < WIDE else frozenset[str]()
    regions = Regions(graph, list(wanted), infinite, fallback - kept_at_8_bits)
    return Plan(
        layers=_layer_specs(wanted, first_last, regions.weight_only, recipe),
        tensors=_tensor_specs(regions, recipe, found, kept_at_8_bits),
        data_movement=frozenset(str(n.name) for n in regions.data_movement),
        integer_nodes=frozenset(str(n.name) for n in regions.integer_nodes),
        first_last=_names(first_last),
    )


def _names(nodes: frozenset[ir.Node]) -> frozenset[str]:
    return frozenset(str(node.name) for node in nodes)


def check_patterns(recipe: Recipe, layers: list[Layer], refused: dict[str, str]) -> None:
    """Raise RecipeError for a pattern that matches neither a layer's name nor an operator."""
    names = [str(layer.node.name) for layer in layers] + list(refused)
    operators = sorted({layer.node.op_type for layer in layers})
    for pattern in (*recipe.exclude, *(o.pattern for o in recipe.layers)):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in [*names, *operators]):
            nearest = nearest_name(pattern, [*names, *operators])
            raise RecipeError(
                f"the pattern '{pattern}' matches no layer and no operator of the model; "
                f"the nearest name is '{nearest}' (onnxq inspect lists them all)"
            )


def check_target(recipe: Recipe, layers: list[Layer], first_last: frozenset[ir.Node]) -> None:
    """Raise RecipeError where the target takes 4-bit tensors and no layer has 4 bits or fewer."""
    if recipe.target != "int4" or not layers:
        return
    wide = for_first_and_last(recipe)
    widths = [
        _weight_bits(_override(own, each), own)
        for each in layers
        for own in [wide if each.node in first_last else recipe]
    ]
    if min(widths) > INT4_BITS:
        raise RecipeError(
            f"the target 'int4' stores weights of {INT4_BITS} bits or fewer as INT4 tensors, and "
            f"those of every layer have {min(widths)} or more; give --weight-bits {INT4_BITS} (and "
            "--first-last-bits for a model of two layers), or another --target"
        )


def _override(recipe: Recipe, layer: Layer) -> LayerOverride:
    return recipe.override_for(str(layer.node.name), layer.node.op_type)


def _weight_only_plan(
    layers: Sequence[Layer], first_last: frozenset[ir.Node], recipe: Recipe
) -> Plan:
    reasons = {layer.node: "activations stay float (--activation-bits none)" for layer in layers}
    return Plan(
        _layer_specs(layers, first_last, reasons, recipe), {}, first_last=_names(first_last)
    )


def _layer_specs(
    layers: Sequence[Layer],
    first_last: frozenset[ir.Node],
    weight_only: dict[ir.Node, str],
    recipe: Recipe,
) -> dict[str, LayerSpec]:
    wide = for_first_and_last(recipe)
    specs = [
        _layer_spec(
            layer, weight_only.get(layer.node, ""), wide if layer.node in first_last else recipe
        )
        for layer in layers
    ]
    return {spec.name: spec for spec in _agree_on_shared_weights(specs, recipe.target)}


def _layer_spec(layer: Layer, reason: str, recipe: Recipe) -> LayerSpec:
    override = _override(recipe, layer)
    granularity = override.granularity or recipe.granularity
    axis = layer.axis if granularity == "per-channel" else None
    compute: Compute = "weight-only" if reason else "integer"
    codebook = override.codebook if isinstance(override.codebook, int) else None
    spec = spec_of(layer, axis, _weight_bits(override, recipe), compute)
    return replace(spec, reason=reason, codebook=codebook)


def _weight_bits(override: LayerOverride, recipe: Recipe) -> int:
    """Bits of a weight; at most 7 for x86 without VNNI, whose 16-bit sums saturate."""
    num_bits = override.weight_bits or recipe.weight_bits
    return min(num_bits, SATURATION_BITS) if recipe.target == "cpu-avx2" else num_bits


def _agree_on_shared_weights(specs: Sequence[LayerSpec], target: Target) -> list[LayerSpec]:
    """One form per shared weight: if layers differ, the most bits, one scale and no codebook."""
    groups: dict[str, list[LayerSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.weight, []).append(spec)
    agreed = []
    for spec in specs:
        group = groups[spec.weight]
        axes = {other.axis for other in group}
        num_bits = max(other.num_bits for other in group)
        looked_up = [other.op_type == TABLE for other in group]
        found = replace(
            spec,
            axis=spec.axis if len(axes) == 1 else None,
            num_bits=num_bits,
            rows=spec.rows if all(looked_up) else 1,
        )
        found = _with_codebook(found, group)
        # Gather takes no INT4.
        int4 = target == "int4" and not any(looked_up)
        agreed.append(_with_int4(found) if int4 else _with_packing(found))
    return agreed


def _with_codebook(spec: LayerSpec, group: Sequence[LayerSpec]) -> LayerSpec:
    """The layer with the largest codebook that its group asks for, where that saves bytes."""
    counts = [other.codebook for other in group]
    if None in counts:
        return replace(spec, codebook=None)
    count = max(each for each in counts if each is not None)
    integer = any(other.compute == "integer" for other in group)
    refusal = codebook_refusal(spec.parameters, count, integer=integer, rows=spec.rows)
    return replace(spec, codebook=None if refusal else count, refusal=refusal)


def _with_packing(spec: LayerSpec) -> LayerSpec:
    """The layer with packed integers, where they have less than 8 bits and packing saves bytes."""
    if spec.codebook is not None or spec.num_bits == BYTE_BITS:
        return spec
    refusal = packing_refusal(spec.parameters, spec.num_bits, spec.rows)
    reasons = "; ".join(each for each in (spec.refusal, refusal) if each)
    return replace(spec, packed=not refusal, refusal=reasons)


def _with_int4(spec: LayerSpec) -> LayerSpec:
    """The layer with a tensor of type INT4, where its integers fit; nothing is packed."""
    if spec.codebook is not None:
        return replace(spec, refusal=INT4_CODEBOOK)
    if spec.num_bits <= INT4_BITS:
        return replace(spec, int4=True)
    if spec.num_bits == BYTE_BITS:
        return spec
    reason = f"one weight per byte: INT4 holds {INT4_BITS} bits, not {spec.num_bits}"
    return replace(spec, refusal="; ".join(each for each in (spec.refusal, reason) if each))


def _tensor_specs(
    regions: Regions, recipe: Recipe, layers: Sequence[Layer], kept_at_8_bits: frozenset[str]
) -> dict[str, TensorSpec]:
    """Specs by name; layer inputs have the recipe's bits, all other tensors 8."""
    outer, inputs = wide_tensors(layers), layer_inputs(layers)
    wide, rest, specs = for_first_and_last(recipe), replace(recipe, activation_bits=WIDE), {}
    for point in regions.points:
        name = str(point.value.name)
        own = wide if name in outer else recipe if name in inputs else rest
        specs[name] = _tensor_spec(point, own)
        if name in kept_at_8_bits:
            specs[name] = replace(specs[name], num_bits=WIDE)
    return specs


def _layer_before(point: QuantizationPoint) -> ir.Node | None:
    """The node that writes a tensor, or the node before the activation in its range."""
    writer = point.value.producer()
    if point.folded is None or writer is None or writer.inputs[0] is None:
        return writer
    return writer.inputs[0].producer()


def _tensor_spec(point: QuantizationPoint, recipe: Recipe) -> TensorSpec:
    writer = _layer_before(point)
    override = recipe.override_for(
        str(writer.name) if writer else str(point.value.name), writer.op_type if writer else ""
    )
    num_bits = override.activation_bits or recipe.activation_bits
    assert num_bits is not None
    symmetric = recipe.symmetric if override.symmetric is None else override.symmetric
    return TensorSpec(
        name=str(point.value.name),
        signed=not never_negative(point.value),
        symmetric=symmetric,
        num_bits=num_bits,
        calibration=override.calibration or recipe.calibration,
        folded=None if point.folded is None else str(point.folded.name),
        integer=point.integer,
    )
