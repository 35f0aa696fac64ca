"""Small transformers that run in the page: choose a program and an input, see what every direction of the stream says.

The page computes the forward pass itself, with the weights that come with it: no kernel and no network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any
from uuid import uuid4

from mechinterp.viz.figure import with_caption

_SCRIPT = """
(() => {
  const root = document.getElementById("NAME"), machines = MACHINES, names = Object.keys(machines);
  const part = name => root.querySelector(`[data-part=${name}]`);
  const make = (tag, text, style) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (style) node.setAttribute("style", style);
    return node;
  };
  let machine, input, chosen, head;

  const times = (x, terms, n) => {
    const y = new Array(n).fill(0);
    for (const [i, j, w] of terms) y[j] += x[i] * w;
    return y;
  };
  const add = (x, y) => y.forEach((value, i) => { x[i] += value; });

  const forward = (m, ids) => {
    const D = m.directions.length, patterns = {};
    const stream = ids.map((id, p) => {
      const x = new Array(D).fill(0);
      for (const [i, w] of [...m.embed[id], ...m.places[p]]) x[i] += w;
      return x;
    });
    m.layers.forEach((layer, l) => {
      const wrote = stream.map(() => new Array(D).fill(0));
      layer.heads.forEach((h, i) => {
        const [q, k, v] = ["q", "k", "v"].map(part => stream.map(x => times(x, h[part], m.d_head)));
        patterns[`${l}.${i}`] = q.map((query, p) => {
          const last = m.causal ? p + 1 : k.length, scores = [];
          for (let j = 0; j < last; j++)
            scores.push(query.reduce((sum, x, c) => sum + x * k[j][c], 0) / Math.sqrt(m.d_head));
          const top = Math.max(...scores), raised = scores.map(s => Math.exp(s - top));
          const total = raised.reduce((a, b) => a + b, 0), pattern = raised.map(e => e / total);
          const z = new Array(m.d_head).fill(0);
          pattern.forEach((a, j) => v[j].forEach((x, c) => { z[c] += a * x; }));
          add(wrote[p], times(z, h.o, D));
          return pattern;
        });
      });
      stream.forEach((x, p) => add(x, wrote[p]));
      stream.forEach(x => {
        const neurons = times(x, layer.read, layer.neurons).map(a => Math.max(0, a));
        add(x, times(neurons, layer.write, D));
      });
    });
    return {stream, patterns};
  };

  const said = (variable, x) => {
    const number = variable.at.length === 1 && variable.values[0] === null;
    if (number) return String(Math.round(x[variable.at[0]] * 1000) / 1000);
    const hot = variable.at.findIndex(i => x[i] > 0.5);
    return hot < 0 ? "" : variable.values[hot];
  };
  root.answers = (name, words) => {
    const m = machines[name], ids = [0, ...words.map(w => m.words.indexOf(w))];
    return forward(m, ids).stream.slice(1).map(x => said(m.variables[m.variables.length - 1], x));
  };

  const draw = () => {
    const {stream, patterns} = forward(machine, [0, ...input]);
    const tokens = ["<bos>", ...input.map(i => machine.words[i])];
    part("input").replaceChildren(...input.map((id, p) => {
      const cell = make("button", machine.words[id]);
      cell.type = "button";
      cell.title = "change this token";
      cell.onclick = () => { input[p] = id + 1 < machine.words.length ? id + 1 : 2; chosen = p + 1; draw(); };
      return cell;
    }));
    part("fewer").disabled = input.length < 2;
    part("more").disabled = input.length >= machine.max_len;
    chosen = Math.min(chosen, input.length);
    const table = part("stream"), row = make("tr");
    for (const text of ["written by", "variable", ...tokens]) row.append(make("th", text));
    table.replaceChildren(row);
    for (const variable of machine.variables) {
      const line = make("tr"), by = make("td");
      if (patterns[variable.head]) {
        const look = make("button", variable.by);
        look.type = "button";
        look.setAttribute("aria-pressed", variable.head === head);
        look.onclick = () => { head = variable.head; draw(); };
        by.append(look);
      } else by.textContent = variable.by;
      line.append(by, make("th", variable.name));
      stream.forEach((x, p) => {
        const cell = make("td", said(variable, x), p === chosen ? "background:rgba(209,102,47,.25)" : "");
        cell.onclick = () => { chosen = p; draw(); };
        line.append(cell);
      });
      table.append(line);
    }
    if (!patterns[head]) head = machine.variables.map(v => v.head).find(h => patterns[h]);
    const map = part("pattern"), title = make("tr");
    const by = machine.variables.find(v => v.head === head);
    part("who").textContent = head === undefined ? "This program has no head."
      : `Attention of head ${head}, which computes ${by.name}: from each row to each column.`;
    map.replaceChildren();
    if (head !== undefined) {
      title.append(...["", ...tokens].map(t => make("th", t)));
      map.append(title, ...patterns[head].map((pattern, p) => {
        const line = make("tr");
        line.append(make("th", tokens[p]), ...tokens.map((_, j) => {
          const a = pattern[j] || 0;
          return make("td", a > 0.005 ? a.toFixed(2) : "", `background:rgba(59,111,182,${(0.8 * a).toFixed(3)})`);
        }));
        return line;
      }));
    }
    const x = stream[chosen];
    part("at").textContent = `Directions at position ${chosen} (${tokens[chosen]}) after the last layer: `;
    part("read").textContent = machine.directions
      .map((name, i) => [name, x[i]]).filter(([, value]) => Math.abs(value) > 0.01)
      .map(([name, value]) => `${name} = ${Math.round(value * 1000) / 1000}`).join(",  ");
  };

  const start = name => {
    machine = machines[name];
    input = machine.start.map(word => machine.words.indexOf(word));
    chosen = input.length;
    head = undefined;
    const heads = machine.variables.map(v => v.head).filter(h => h !== null);
    head = heads[heads.length - 1];
    part("says").textContent = machine.says;
    draw();
  };
  const menu = root.querySelector("select");
  menu.onchange = () => start(names[menu.selectedIndex]);
  part("fewer").onclick = () => { input.pop(); draw(); };
  part("more").onclick = () => { input.push(2); chosen = input.length; draw(); };
  start(names[0]);
})();
"""
_STYLE = """
.mi-machine table { border-collapse: collapse; margin: .4em 0; font-size: .9em; display: block; overflow-x: auto; }
.mi-machine th, .mi-machine td { padding: .15em .5em; text-align: center; border: 1px solid rgba(128,138,152,.25); }
.mi-machine td { cursor: default; min-width: 2.4em; }
.mi-machine button { all: unset; cursor: pointer; padding: .1em .5em; border: 1px solid rgba(128,138,152,.6);
  border-radius: 4px; margin-right: .2em; }
.mi-machine button:focus-visible { outline: 2px solid currentColor; }
.mi-machine button:disabled { opacity: .35; cursor: default; }
.mi-machine button[aria-pressed=true] { background: rgba(59,111,182,.35); }
"""


@dataclass(frozen=True)
class Machines:
    """Transformers by name, one of them running on the page."""

    machines: Mapping[str, Mapping[str, Any]]
    caption: str

    def _repr_html_(self) -> str:
        name = f"machine-{uuid4().hex[:12]}"
        # "</" would end the script element early.
        data = json.dumps(self.machines, separators=(",", ":")).replace("</", "<\\/")
        script = _SCRIPT.replace("NAME", name).replace("MACHINES", data)
        options = "".join(f"<option>{escape(title)}</option>" for title in self.machines)
        body = (
            f'<div id="{name}" class="mi-machine"><style>{_STYLE}</style>'
            f'<p><label>Program: <select style="max-width:100%">{options}</select></label> '
            '<span data-part="says"></span></p>'
            '<p>Input: <span data-part="input"></span> <button type="button" data-part="fewer" title="one token less">'
            '−</button><button type="button" data-part="more" title="one token more">+</button></p>'
            '<table data-part="stream"></table><p data-part="who"></p><table data-part="pattern"></table>'
            '<p><span data-part="at"></span><code data-part="read" style="white-space:normal"></code></p>'
            f"<script>{script}</script></div>"
        )
        return with_caption(body, self.caption)


def machines(by_name: Mapping[str, Mapping[str, Any]], *, caption: str) -> Machines:
    """Transformers that run in the page, chosen from a menu; needs no kernel and no network.

    Args:
        by_name: as `rasp.live.page` gives them.

    Errors: `ValueError` if there are none.
    """
    if not by_name:
        raise ValueError("give at least one transformer to run")
    return Machines(dict(by_name), caption)
