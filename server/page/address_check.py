"""The page's check of its own address, which tells the visitor why the page cannot work behind a proxy.

Knows addresses and a browser's `location`; not the page. The script needs no file of the server: with a wrong prefix,
the browser finds none of them.
"""

import json

from starlette.datastructures import Headers

from server.api.public_address import PublicAddress, without_default_port

ADVICE = (
    "If this is the server's own page behind a proxy, let the proxy pass Host on, or send X-Forwarded-Host and "
    "X-Forwarded-Prefix from an address in --trusted-proxies; or set --public-url."
)
SCRIPT = """<script>
(() => {
  const own = %s, advice = %s, path = location.pathname.replace(/\\/$/, "");
  const problems = [];
  if (!own.hosts[location.protocol === "https:" ? "https" : "http"].includes(location.host)) {
    problems.push(`This page is at ${location.host}, but the server believes that its host is ${own.host}.`);
  }
  if (path !== own.prefix) {
    problems.push(`This page is at ${path || "/"}, but the server believes that it is at ${own.prefix || "/"}.`);
  }
  if (!problems.length) return;
  const note = document.createElement("div");
  note.id = "z-address";
  note.setAttribute("role", "alert");
  note.style.cssText = "padding: 1rem; margin: 1rem; border: 2px solid #c33; font: 16px/1.5 sans-serif";
  note.textContent = [...problems, advice].join(" ");
  document.body.prepend(note);
})();
</script>"""


def own_hosts(headers: Headers, address: PublicAddress, scheme: str) -> list[str]:
    """Return the hosts of the server's own pages, as browsers write them in an origin of this scheme."""
    found = (headers.get("host"), headers.get("x-forwarded-host"), address.host)
    return [without_default_port(host.lower(), scheme) for host in dict.fromkeys(found) if host]


def script(headers: Headers, address: PublicAddress) -> str:
    """Return a script for the body of the page that a request asks for."""
    hosts = {scheme: own_hosts(headers, address, scheme) for scheme in ("http", "https")}
    own = {"hosts": hosts, "host": address.host, "prefix": address.prefix}
    return SCRIPT % (_literal(own), _literal(ADVICE))


def _literal(value: object) -> str:
    """Return JSON that cannot end a script element."""
    return json.dumps(value).replace("<", "\\u003c")
