"""How report.html looks: one style sheet, light and dark by the reader's setting, from a telephone to a wide screen."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --line: #e4e4de; --ink: #1d2329; --faint: #646c76; --grid: #dcdcd5;
  --main: #2b6cb0; --second: #c05621; --good: #2f855a; --bad: #c53030; --tint: #eef3f9; --warn: #975a16;
  --shadow: #00000033;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --card: #1c2026; --line: #2e343c; --ink: #e4e7eb; --faint: #98a2ae; --grid: #343b44;
    --main: #7ab3ef; --second: #eda36b; --good: #68c596; --bad: #f28b82; --tint: #232b36; --warn: #e0b266;
    --shadow: #000000aa;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2.2rem 1.4rem 4rem; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC",
    "Microsoft YaHei", sans-serif;
}
h1 { font-size: 1.65rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0; }
h3 { font-size: 0.95rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.35rem 0; }
a { color: var(--main); text-decoration: none; }
a:hover { text-decoration: underline; }
.faint, figcaption, th, dt { color: var(--faint); }
.number { font-variant-numeric: tabular-nums; }
code, .mono {
  font-size: 0.86em; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.facts { display: flex; flex-wrap: wrap; gap: 0.3rem 1.5rem; margin: 0.7rem 0 1.6rem; }
.facts b { font-weight: 600; }
.note { border-left: 3px solid var(--warn); padding: 0.2rem 0.8rem; margin: 0.8rem 0; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem 1.2rem;
  margin: 1.2rem 0;
}
.scroll {  /* a shadow at an edge behind which there is more */
  overflow-x: auto;
  background: linear-gradient(to right, var(--card) 40%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--card) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) left / 0.9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) right / 0.9rem 100% no-repeat scroll;
}
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: 0.85rem; text-align: left; border-bottom: 1px solid var(--line); }
th, td { padding: 0.28rem 0.7rem 0.28rem 0; vertical-align: baseline; white-space: nowrap; }
td.name { white-space: normal; overflow-wrap: break-word; min-width: 6.2em; }
tbody tr + tr td { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent); }
.right { text-align: right; }
.cut, .missing { color: var(--warn); }
.track {
  position: relative; display: inline-block; width: 110px; height: 0.85em; vertical-align: -0.08em;
  background: linear-gradient(var(--grid), var(--grid)) center / 100% 1px no-repeat;
}
.track i, .track b { position: absolute; }
.track i { top: 22%; height: 56%; min-width: 2px; border-radius: 3px; background: var(--main); opacity: 0.3; }
.track b { top: 0; height: 100%; width: 3px; margin-left: -1.5px; border-radius: 2px; background: var(--main); }
.track u { position: absolute; top: 0; height: 100%; border-left: 1.5px dotted var(--second); }
.head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.2rem 0.8rem; }
.kind {
  font-size: 0.78rem; color: var(--faint); border: 1px solid var(--line); border-radius: 99px; padding: 0 0.6rem;
}
.up { margin-left: auto; padding: 0 0.3rem; }
.figures { display: flex; flex-wrap: wrap; gap: 0.4rem 2.2rem; margin: 0.8rem 0 0.3rem; }
.figures div { line-height: 1.3; }
.figures strong { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures small { display: block; color: var(--faint); }
.plots { columns: 2 380px; column-gap: 2.2rem; margin-top: 0.6rem; }
figure { margin: 0; padding: 0.3rem 0 1.2rem; break-inside: avoid; }
figcaption { font-size: 0.86rem; margin-bottom: 0.3rem; }
figcaption b { color: var(--ink); font-weight: 600; display: block; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.item { border-top: 1px solid var(--line); padding: 0.7rem 0; }
.item:first-of-type { border-top: none; }
.item .text {
  white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); border-radius: 6px; padding: 0.45rem 0.7rem;
  margin: 0.35rem 0; font-size: 0.92rem;
}
.choice { display: grid; grid-template-columns: 1.2em minmax(0, 1fr) 6.5em 3.2em; gap: 0.5rem; align-items: center; }
.choice .words { overflow-wrap: anywhere; }
.bar { height: 0.5em; border-radius: 3px; background: var(--grid); }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--main); }
.wanted .bar i { background: var(--good); }
.wanted .words { font-weight: 600; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.pair { display: grid; grid-template-columns: 6.5em minmax(0, 1fr); gap: 0.1rem 0.6rem; overflow-wrap: anywhere; }
details { margin-top: 0.7rem; }
summary { cursor: pointer; color: var(--faint); }
summary:hover { color: var(--ink); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1.1rem; margin: 0.5rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 860px) {
  .wide { display: none; }
  th, td { padding-right: 0.55rem; }
}
@media (max-width: 560px) {
  body { padding: 1.1rem 0.7rem 3rem; font-size: 14px; }
  .card { padding: 0.8rem 0.8rem 0.9rem; border-radius: 8px; }
  td.name { min-width: 4.6em; }
  table { font-size: 0.93em; }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: 0.3rem; }
  .choice { grid-template-columns: 1.2em minmax(0, 1fr) 3.5em 3em; }
}
@media print { .card { break-inside: avoid; } body { max-width: none; } }
"""
