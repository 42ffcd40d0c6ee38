"""The comparison of runs as a page."""

from __future__ import annotations

from collections.abc import Sequence

from photo_classifier.comparison.table import SEPARATE, Comparison, cells, folders, heading, verdicts

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Runs compared</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 1.5rem auto; max-width: 95rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886; vertical-align: top; }
tbody th { font-weight: inherit; }
td:nth-child(2) { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
tbody tr:first-child { font-weight: 600; }
</style>
<main>
<h1>Runs compared</h1>
{% if groups|length > 1 %}<p>{{ separate }}</p>
{% endif %}
{% for group in groups %}
<div class="wide" tabindex="0" role="region" aria-label="The runs, the best first">
<table>
<thead><tr>{% for name in group.header %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in group.rows %}
<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
<p>{{ group.heading }}</p>
{% if group.verdicts %}<ul>
{% for line in group.verdicts %}<li>{{ line }}</li>
{% endfor %}
</ul>{% endif %}
{% for note in group.notes %}<p><strong>Note:</strong> {{ note }}</p>
{% endfor %}
{% endfor %}
</main>
</html>
"""


def render(comparisons: Sequence[Comparison]) -> str:
    """Returns the page; names of folders, classes and files cannot put markup into it."""
    import jinja2

    template, groups = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE), []
    for comparison in comparisons:
        names = ["run", *folders(comparison)]
        header, *rows = ([letter, name, *rest] for (letter, *rest), name in zip(cells(comparison), names, strict=True))
        parts = {"heading": heading(comparison), "verdicts": verdicts(comparison), "notes": comparison.notes}
        groups.append({"header": header, "rows": rows, **parts})
    return template.render(groups=groups, separate=SEPARATE.format(n=len(groups)))
