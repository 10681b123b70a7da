"A drawing of the sub-packages, made from their imports."
LAYERS = [["app"], ["pruning", "name_bias"], ["tabular", "language", "toy_models"], ["top"]]
BASE = "core, metrics, states, search, store, plots, report, disparity"
ARROW = ('<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
         'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>')


def draw_packages(arrows, titles) -> str:
    "Draw each package above those that it imports, as SVG in the colours of the page."
    at = {name: (760*(k + 1)/(len(row) + 1), 40 + 110*depth) for depth, row in enumerate(LAYERS)
          for k, name in enumerate(row)}
    label = "Sub-packages, each above those that it imports"
    lines = [f'<svg viewBox="0 0 760 420" role="img" aria-label="{label}" class="packages">', ARROW]
    for a, b in sorted(arrows):
        if b == "top": continue # all import the base
        (x, y), (to_x, to_y) = at[a], at[b]
        ends = f'x1="{x:.0f}" y1="{y + 26}" x2="{to_x:.0f}" y2="{to_y - 26}"'
        lines.append(f'<line {ends} stroke="currentColor" marker-end="url(#head)"/>')
    for name, (x, y) in at.items():
        width = 720 if name == "top" else 172
        box = f'x="{x - width/2:.0f}" y="{y - 26}" width="{width}" height="52" rx="6"'
        lines.append(f'<rect {box} fill="none" stroke="currentColor"/>')
        shown = BASE if name == "top" else name
        for text, below, weight in ((shown, -3, "bold"), (titles[name], 15, "normal")):
            place = f'x="{x:.0f}" y="{y + below}" text-anchor="middle"'
            lines.append(f'<text {place} font-weight="{weight}">{text}</text>')
    return "\n".join([*lines, "</svg>"])
