"""The comparison of runs as a page."""

from __future__ import annotations

from photo_classifier.comparison.table import Comparison, cells, heading, verdicts

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
tbody th { font-weight: inherit; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
tbody tr:first-child { font-weight: 600; }
</style>
<main>
<h1>Runs compared</h1>
<div class="wide" tabindex="0" role="region" aria-label="The runs, the best first">
<table>
<thead><tr>{% for name in header %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
<p>{{ heading }}</p>
<ul>
{% for line in verdicts %}<li>{{ line }}</li>
{% endfor %}
</ul>
{% for note in notes %}<p><strong>Note:</strong> {{ note }}</p>
{% endfor %}
</main>
</html>
"""


def render(comparison: Comparison) -> str:
    """Returns the page; names of folders, classes and files cannot put markup into it."""
    import jinja2

    header, *rows = cells(comparison)
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    parts = {"heading": heading(comparison), "verdicts": verdicts(comparison), "notes": comparison.notes}
    return template.render(header=header, rows=rows, **parts)
