"""Tables for the terminal, or for a file: 80 columns are enough."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from rich.table import Table

from tcl_jax.progress import Console
from tcl_jax.report import page
from tcl_jax.report.layers import PARTS, Layer
from tcl_jax.report.names import shortened
from tcl_jax.report.sweep import Row, estimates, fitting, percent

_console = Console()


def _print(
    title: str | None,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    first: Literal["left", "right"] = "right",
) -> None:
    """A table of numbers, which are never cut; the first column is folded where there is no room.

    Args:
        title: above it, if any.
        headings: of the columns.
        rows: as wide as the headings.
        first: the side that the first column keeps to.
    """
    table = Table(title=title)
    table.add_column(headings[0], justify=first, overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def _print_layers(title: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table with a row for each layer, by name."""
    heading, names = shortened(list(rows), "neurons")
    of_layers = [(name, *row) for name, row in zip(names, rows.values(), strict=True)]
    _print(title, (heading, *headings), of_layers, first="left")


def print_conversion(about: Mapping[str, Any]) -> None:
    """λ of every layer, and how exactly the converted network computes what the trained one did."""
    rows = {name: [_norm(lam)] for name, lam in about["lambda"].items()}
    title, headings = f"norm-factors ({about['norm']})", ["λ"]
    if rounding := about.get("rounding"):
        title += f", and what weights of {about['weights']} change, in % of λ"
        headings.append("mean |Δ activation|")
        for name, row in rows.items():  # the output has no activation
            change = rounding["layers"].get(name)
            row.append("" if change is None else f"{100 * change:.3f}")
    _print_layers(title, headings, rows)
    step, last = about["checkpoint_step"], about["total_steps"]
    if step < last:
        _console.print(f"this is the network at step {step} of {last}, not at the end of training")
    v = about["verification"]
    _console.print(
        f"folded = trained network: max |Δ logit| {v['max_abs_logit_difference_folded']:.2e} "
        f"(largest logit {v['largest_logit']:.2f}), the same class on {v['same_class']} of "
        f"{v['images']} test images; normalised = folded: max |Δ logit| "
        f"{v['max_abs_logit_difference_normalised']:.2e}",
        highlight=False,
    )
    if rounding:
        exact, found = (rounding["accuracy"][of] for of in ("exact", "rounded"))
        _console.print(
            f"with weights of {about['weights']}, before it spikes: the same class on "
            f"{rounding['same_class']} of {rounding['images']} test images, accuracy {found:.2%} "
            f"instead of {exact:.2%}",
            highlight=False,
        )
    ann = about["ann"]
    accuracy = ", ".join(f"{a:.2%} in {dtype}" for dtype, a in ann["accuracy"].items())
    if "accuracy_top5" in ann:
        accuracy += f"; top-5 {ann['accuracy_top5']['float32']:.2%}"
    _console.print(
        f"accuracy of the trained network on {ann['images']} test images: {accuracy}",
        highlight=False,
    )
    if "same_class_as_trained" in ann:
        _console.print(
            f"trained in {about['trained_in']}, converted from its float32 weights: max |Δ logit| "
            f"{ann['max_abs_logit_difference_as_trained']:.2e}, the same class on "
            f"{ann['same_class_as_trained']} of {ann['images']} test images",
            highlight=False,
        )


def _norm(lam: float | list[Any]) -> str:
    """One λ as it is; of one a channel the range, the median and the number."""
    if isinstance(lam, float):
        return _digits(lam)
    low, median, high = (_digits(f(lam)) for f in (np.min, np.median, np.max))
    return f"{low}–{high}, median {median} of {np.size(lam)}"


def _digits(value: float) -> str:
    # Bounds from weights alone grow beyond what can be read in full.
    return f"{value:.4f}" if value < 1e5 else f"{value:.3e}"


def print_layers(layers: Sequence[Layer], timesteps: int) -> None:
    """What spiking does to every layer at one latency T, and what its error is made of."""
    rows, parts = {}, {}
    for layer in layers:
        at = layer.at[timesteps]
        shares = (f"{layer.dead:.1%}", f"{at.saturated:.1%}")
        rows[layer.name] = (f"{at.rate:.3f}", *shares, f"{100 * at.error:.2f}")
        parts[layer.name] = [f"{100 * getattr(at, part):.2f}" for part in PARTS]
    title = f"ANN against SNN at T = {timesteps}, errors in % of λ"
    _print_layers(title, ("rate", "dead", "saturated", "error"), rows)
    _print_layers("parts of the errors, in % of λ", PARTS, parts)


def print_curve(
    accuracy: Sequence[float],
    ann_accuracy: Mapping[str, float],
    latencies: Sequence[int],
    title: str,
    *,
    top5: Sequence[float] | None = None,
    ann_top5: float | None = None,
    error: Sequence[float] | None = None,
) -> None:
    """Accuracy at some latencies beside the analog network's, and the loss by conversion.

    Args:
        accuracy: at T = 1, 2, ...
        ann_accuracy: the analog network's by the type that it computes in, float32 first.
        latencies: those to show.
        title: above the table.
        top5: top-5 accuracy at T = 1, 2, ..., for two more columns.
        ann_top5: the analog network's, where it is known.
        error: of the values at T = 1, 2, ..., as a part of these, for one more column.
    """
    (_, ann), *others = ann_accuracy.items()
    headings = ["T", "SNN accuracy", "ANN accuracy", "conversion loss"]
    at = ((t, accuracy[t - 1]) for t in latencies)
    rows = [[f"{t}", f"{a:.2%}", f"{ann:.2%}", f"{100 * (ann - a):+.2f} points"] for t, a in at]
    if top5 is not None:
        headings += ["SNN top-5", "ANN top-5"]
        known = "–" if ann_top5 is None else f"{ann_top5:.2%}"
        for t, row in zip(latencies, rows, strict=True):
            row += [f"{top5[t - 1]:.2%}", known]
    if error is not None:
        headings += ["RMS error"]
        for t, row in zip(latencies, rows, strict=True):
            row += [f"{error[t - 1]:.2%}"]
    _print(title, headings, rows)
    if error is not None:
        _console.print("RMS error: of the output's values, in % of their root mean square")
    for dtype, other in others:
        _console.print(f"the ANN in {dtype}, as it was trained: {other:.2%}", highlight=False)
    if top5 is not None and ann_top5 is None:
        _console.print("the ANN's top-5 accuracy was not kept: convert the run again to have it")


def print_sweep(common: str, found: Sequence[Row], latencies: Sequence[int]) -> None:
    """Accuracy of many simulations at some latencies, with the spread over seeds.

    Args:
        common: what all have in common, in words.
        found: a row each.
        latencies: those to show; where there is no room beside, tables follow each other.
    """
    labels = [row.label or "SNN" for row in found]
    many = max(row.seeds for row in found) > 1
    what = {"accuracy": [(row.accuracy, row.ann) for row in found]}
    top5 = [(row.top5, row.ann_top5) for row in found if row.top5 is not None]
    if len(top5) == len(found):
        what["top-5 accuracy"] = top5
    for name, values in what.items():
        columns = {f"{t}": [percent(of_snn[:, t - 1]) for of_snn, _ in values] for t in latencies}
        ann = [percent(of_ann) for _, of_ann in values]
        title = f"{name} in %: {common}"
        last = {"ANN": ann} if len(set(ann)) > 1 else {}
        if not last:
            title += f"; ANN {ann[0]}"
        first = {"seeds": [f"{row.seeds}" for row in found]} if many else {}
        _console.print(title, highlight=False)
        for at in fitting(labels, first | last, columns, _console.width):
            shown = first | at | last
            _print(
                None, ("T =", *shown), list(zip(labels, *shown.values(), strict=True)), first="left"
            )
    if many:
        _console.print("±: standard deviation over seeds", highlight=False)
    for line in estimates(found):
        _console.print(line, highlight=False)


def print_energy(
    content: Mapping[str, Any], accuracy: Sequence[float], ann_accuracy: float
) -> None:
    """Activity of every layer, and energy at some latencies beside the analog network's.

    Args:
        content: of `energy.json`.
        accuracy: at T = 1, 2, ...
        ann_accuracy: the analog network's.
    """
    layers = {
        layer["name"]: (
            f"{layer['neurons']:,}",
            f"{layer['rate']:.4f}",
            f"{layer['additions']:,.0f}",
        )
        for layer in content["layers"]
    }
    title = f"activity up to T = {content['timesteps']}, an image on average"
    _print_layers(title, ("number", "spikes a step", "synaptic operations"), layers)
    cost, ann = content["cost_pj"], content["ann"]
    rows = []
    at_latencies = [(t, accuracy[int(t) - 1], at) for t, at in content["at"].items()]
    for label, right, at in [*at_latencies, ("ANN", ann_accuracy, ann)]:
        part = f"{at['energy_uj'] / ann['energy_uj']:.2f}" if ann["energy_uj"] else "–"
        operations = f"{at['additions']:,.0f}", f"{at['macs']:,}"
        rows.append((label, f"{right:.2%}", *operations, f"{at['energy_uj']:,.3f}", part))
    _print(
        f"energy an image, at {cost['ac']:g} pJ an addition (AC), {cost['mac']:g} pJ a MAC",
        ("T", "accuracy", "ACs", "MACs", "energy, µJ", "of the ANN's"),
        rows,
    )
    longest, at = at_latencies[-1][0], at_latencies[-1][2]
    low, middle, high = at["energy_uj_percentiles"].values()
    _console.print(
        f"of single images at T = {longest}: from {low:,.3f} µJ (5 % take less) to {high:,.3f} "
        f"(5 % take more), half below {middle:,.3f}",
        highlight=False,
    )
    _console.print(
        "not in the energy: membrane potentials, of which "
        f"{at['membrane_bytes'] / int(longest) / 1e3:,.1f} kB an image are read and written in a "
        f"step, {at['membrane_bytes'] / 1e6:,.2f} MB up to T = {longest}",
        highlight=False,
    )


def print_plan(plan: Mapping[str, Any]) -> None:
    """What a training step takes on a slice of TPU chips, and how long it does.

    Args:
        plan: as `tcl_jax.training.plan.Plan.said` has it.
    """
    chips = plan["chips"]
    _console.print(
        f"a step of {plan['network']} in {plan['dtype']} on {plan['topology']}, {chips} chips, "
        f"with {plan['batch_size'] / chips:g} images on each",
        highlight=False,
    )
    _print_costs(plan)
    columns = {
        "images/s": ("images_per_second", ",.0f"),
        "epochs/hour": ("epochs_per_hour", ",.4g"),
        "MFU": ("utilisation", ".1%"),
    }
    _print_times(plan, columns)
    at = plan["at_expected"] or plan["at_bound"]
    if "cores" in at:
        _console.print(
            f"to feed a chip then, {at['images_per_second'] / chips:,.0f} images/s, takes "
            f"{at['cores']:.1f} cores that decode {plan['images_per_core']} images/s each, and its "
            f"host has {plan['published']['cores']:g} for each chip",
            highlight=False,
        )


def print_simulation_plan(plan: Mapping[str, Any]) -> None:
    """The same of a simulation.

    Args:
        plan: as `tcl_jax.runs.plan.plan_run` has it.
    """
    hosts = f"{plan['hosts']} host{'s' if plan['hosts'] > 1 else ''}"
    _console.print(
        f"{plan['network']} for T = {plan['timesteps']} on {plan['topology']}, {plan['chips']} "
        f"chips, {plan['batch_size']} images at a time on each of {hosts}",
        highlight=False,
    )
    _print_costs(plan)
    columns = {
        "images/s": ("images_per_second", ",.0f"),
        f"s for all {plan['test_images']:,}": ("seconds", ",.4g"),
    }
    _print_times(plan, columns)


def _print_costs(plan: Mapping[str, Any]) -> None:
    """`tcl_jax.roofline.costs`."""
    chip, seconds = plan["published"], plan["seconds"]
    rows = [
        ("memory", f"{plan['memory_bytes'] / 2**30:.2f} GiB", f"{chip['memory'] / 2**30:g} GiB")
    ]
    if "state_bytes" in plan:
        rows.append(("… of the state", f"{plan['state_bytes'] / 2**30:.2f} GiB", ""))
    rows += [
        (f"{e['kind']}, {e['times']} times", f"{e['bytes'] / 1e6:,.4g} MB", "")
        for e in plan["exchanges"]
    ]
    traffic = f"{plan['bytes'] / 1e9:,.4g} GB"
    flops = f"{plan['flops'] / 1e9:,.4g} GFLOP"
    if (passes := plan["passes"] / max(plan["flops"], 1)) > 1:
        flops += f" × {passes:.3g} passes"
    _print(
        "what it takes",
        ("on each chip", "takes", "of", "ms"),
        [
            *((*row, "") for row in rows),
            *(
                (what, takes, f"{limit:g} {unit}", f"{1e3 * seconds[of]:.2f}")
                for what, takes, limit, unit, of in (
                    ("products", flops, chip["flops"] / 1e12, "TFLOP/s", "products"),
                    ("memory traffic", traffic, chip["bandwidth"] / 1e9, "GB/s", "memory"),
                    ("links", "", chip["links"] / 1e9, "GB/s", "links"),
                )
            ),
        ],
        first="left",
    )


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _print_times(plan: Mapping[str, Any], columns: Mapping[str, tuple[str, str]]) -> None:
    """At best, and as the compiler expects.

    Args:
        plan: has them.
        columns: by their headings, what they are called there and how they are written.
    """
    times = {"at best (roofline)": "bound", "as the compiler expects": "expected"}
    rows = []
    for what, of in times.items():
        if found := plan[f"at_{of}"]:
            numbers = [format(found[name], how) for name, how in columns.values()]
            rows.append((what, f"{1e3 * plan['seconds'][of]:.2f}", *numbers))
    _print("how long it takes", ("", "ms", *columns), rows, first="left")


def print_table(title: str, table: page.Table) -> None:
    """A table that a page shows, too."""
    _print(title, table.headings, table.rows)


def print_adaptive(content: Mapping[str, Any]) -> None:
    """Adaptive latency beside fixed ones.

    Args:
        content: of `adaptive.json`.
    """
    longest, seconds = content["timesteps"], content["seconds"]
    fixed = {longest: {"accuracy": content["accuracy_fixed"], "seconds": seconds["fixed"]}}
    as_good = content["fixed_as_accurate"]
    for at in (content["accuracy_fixed_at_mean"], as_good):
        if at is not None:
            fixed.setdefault(at["T"], at)
    rows = [
        (f"fixed T = {t}", f"{at['accuracy']:.2%}", f"{t}", f"{at['seconds']:.1f}")
        for t, at in sorted(fixed.items())
    ]
    adaptive = f"{content['accuracy']:.2%}", f"{content['mean_steps']:.2f}"
    rows.append(("adaptive", *adaptive, f"{seconds['adaptive']:.1f}"))
    _print(
        f"{content['network']} on {content['images']} test images of {content['data']}",
        ("latency", "accuracy", "mean T", "seconds"),
        rows,
    )
    if as_good is not None:
        times = as_good["seconds"] / seconds["adaptive"]
        _console.print(
            f"the first fixed T as accurate is {as_good['T']}, which takes {times:.2f} times as "
            "long as adaptive latency",
            highlight=False,
        )
    held_out = content["held_out"]
    loss = 100 * (held_out["accuracy_fixed"] - held_out["accuracy"])
    bound = "∞" if content["bound"] is None else f"{content['bound']:.3f}"
    shares = ", ".join(f"{p} % by {t:g}" for p, t in content["percentiles"].items())
    _console.print(
        f"stopped: {shares}; at a margin of {bound}, which cost {loss:+.2f} points on "
        f"{held_out['images']} training images ({content['max_loss_points']:g} allowed)",
        highlight=False,
    )
