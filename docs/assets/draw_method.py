"""Draw `method.svg`, the picture of docs/explanation/method.md: `python docs/assets/draw_method.py`."""

from __future__ import annotations

from pathlib import Path

LEVELS = ("1", "2", "L")
ROWS = {"1": 428, "2": 352, "L": 244}
"""The top of the boxes of each level."""
HEIGHT = 44
PASS_ONE, PATH, PASS_TWO = 16, 174, 346
"""The left edges of the three columns."""

STYLE = """
  .card { fill: #ffffff; stroke: #d5d8dc }
  text { font: 15px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; text-anchor: middle }
  .small { font-size: 13px; fill: #4d565f }
  .math { font-style: italic }
  .head { font-weight: 600 }
  .frozen { fill: #eef1f4; stroke: #7b8794; stroke-width: 1.5 }
  .trained { fill: #fdeedd; stroke: #c2600a; stroke-width: 1.5 }
  .line { fill: none; stroke: #6b7680; stroke-width: 1.6; marker-end: url(#grey) }
  .feed { fill: none; stroke: #c2600a; stroke-width: 1.8; marker-end: url(#orange) }
  .tip { fill: #6b7680 } .tip-feed { fill: #c2600a }
  @media (prefers-color-scheme: dark) {
    .card { fill: #1c2027; stroke: #3a414b }
    text { fill: #e8eaed } .small { fill: #b4bcc6 }
    .frozen { fill: #2b313a; stroke: #8f9baa } .trained { fill: #45300f; stroke: #f0a04b }
    .line { stroke: #97a3b0 } .feed { stroke: #f0a04b } .tip { fill: #97a3b0 } .tip-feed { fill: #f0a04b }
  }
"""


def write_text(x: float, y: float, text: str, kind: str = "") -> str:
    """Return a text, centred on x. `_c` makes the character c a subscript."""
    parts, rest = [], text
    while "_" in rest:
        before, _, rest = rest.partition("_")
        parts.append(f'{before}<tspan dy="4" font-size="11">{rest[0]}</tspan><tspan dy="-4">&#8203;</tspan>')
        rest = rest[1:]
    return f'<text x="{x}" y="{y}" class="{kind}">{"".join(parts)}{rest}</text>'


def draw_box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" class="{kind}"/>'


def draw_arrow(path: str, kind: str = "line") -> str:
    """Return an arrow along an SVG path."""
    return f'<path d="{path}" class="{kind}"/>'


def draw_method() -> str:
    """Return the picture as SVG."""
    one, two, path = PASS_ONE + 58, PASS_TWO + 57, PATH + 38
    parts = [
        write_text(one, 542, "i. first pass", "head"),
        write_text(path + 24, 542, "iii. feedback", "head"),
        write_text(two, 542, "iv. second pass", "head"),
        write_text(one, 500, "input"),
        write_text(two, 500, "the same input"),
        draw_arrow(f"M{one} 484 V{ROWS['1'] + HEIGHT + 3}"),
        draw_arrow(f"M{two} 484 V{ROWS['1'] + HEIGHT + 3}"),
        # the selection
        draw_box(16, 92, 274, 72, "trained"),
        write_text(153, 116, "ii. selection", "head"),
        write_text(153, 136, "m_i = clamp(cos(z_i, ξ), 0, 1)", "math"),
        write_text(153, 155, "s_i = P (m_i z_i)", "math"),
        draw_arrow(f"M{one} {ROWS['L'] - 1} V167"),
        write_text(one - 12, 208, "z", "math"),
        draw_arrow(f"M{path} 164 V{ROWS['L'] - 3}", "feed"),
        write_text(path + 13, 208, "s", "math"),
        # the head
        draw_box(PASS_TWO, 106, 114, HEIGHT, "trained"),
        write_text(two, 133, "task head"),
        draw_arrow(f"M{two} {ROWS['L'] - 1} V153"),
        draw_arrow(f"M{two} 106 V82"),
        write_text(two, 72, "prediction"),
    ]
    for level in LEVELS:
        y = ROWS[level]
        parts += [
            draw_box(PASS_ONE, y, 116, HEIGHT, "frozen"),
            write_text(one, y + 27, f"level {level}" if level != "L" else "level L"),
            draw_box(PASS_TWO, y, 114, HEIGHT, "frozen"),
            write_text(two, y + 27, f"level {level}"),
            draw_box(PATH, y, 76, HEIGHT, "trained"),
            write_text(path, y + 27, f"A_{level}, B_{level}", "math"),
            draw_arrow(f"M{PATH + 76} {y + 22} H{PASS_TWO - 3}", "feed"),
            write_text((PATH + 76 + PASS_TWO) / 2 - 3, y + 14, f"X_{level}", "math"),
        ]
    for x, kind in ((one, "line"), (two, "line")):
        parts += [draw_arrow(f"M{x} {ROWS['1'] - 1} V{ROWS['2'] + HEIGHT + 3}", kind)]
        parts += [draw_arrow(f"M{x} {ROWS['2'] - 1} V{ROWS['2'] - 15}", kind), write_text(x, 330, "⋮")]
        parts += [draw_arrow(f"M{x} {310} V{ROWS['L'] + HEIGHT + 3}", kind)]
    parts += [
        draw_arrow(f"M{path} {ROWS['L'] + HEIGHT} V307", "feed"),
        write_text(path, 330, "⋮"),
        draw_arrow(f"M{path} 335 V{ROWS['2'] - 3}", "feed"),
        draw_arrow(f"M{path} {ROWS['2'] + HEIGHT} V{ROWS['1'] - 3}", "feed"),
        write_text(path + 22, 416, "u_2", "math"),
        # the legend
        draw_box(16, 16, 22, 18, "frozen"),
        '<text x="46" y="30" class="small" style="text-anchor: start">frozen backbone, run twice</text>',
        draw_box(244, 16, 22, 18, "trained"),
        '<text x="274" y="30" class="small" style="text-anchor: start">trained</text>',
        draw_arrow("M340 25 H372", "feed"),
        '<text x="382" y="30" class="small" style="text-anchor: start">signals</text>',
    ]
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6.5" markerHeight="6.5" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" class="{kind}"/></marker>'
        for name, kind in (("grey", "tip"), ("orange", "tip-feed"))
    )
    title = (
        "TOAST. The first pass gives z. Selection weighs its tokens and channels. The feedback path carries the result "
        "from the last level to the first. The second pass adds a signal at each level."
    )
    body = "\n".join(parts)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="560" viewBox="0 0 480 560" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<defs>{tips}</defs>\n"
        f'<rect x="0.5" y="0.5" width="479" height="559" rx="10" class="card"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("method.svg").write_text(draw_method(), encoding="utf-8")
