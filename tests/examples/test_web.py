"""The web page gives the predictor's logits, in a real browser.

npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
ORT_WEB=package/dist pytest -m slow tests/examples/test_web.py
"""

import base64
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from mlg_jax import load_pretrained
from mlg_jax.pretrained import pretrained_path
from tests.pretrained import _pictures

BUILD = pathlib.Path(__file__).parents[2] / "examples" / "web" / "build.py"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = """<script type="module">
if (!window.classify) await new Promise((done) => window.addEventListener("ready", done));
const results = [];
for (const address of PICTURES) {
  const picture = await createImageBitmap(await (await fetch(address)).blob());
  const result = await window.classify(picture);
  results.push({ pixels: Array.from(result.pixels), logits: result.logits });
  window.show(result);
}
await fetch("ADDRESS", { method: "POST", mode: "no-cors", body: JSON.stringify(results) });
</script>"""


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received = json.loads(body)
        self.send_response(204)
        self.end_headers()


def results_of(page):
    """What the page sends while a browser shows it."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    server.timeout, server.received = 120, None
    address = f"http://127.0.0.1:{server.server_port}"
    page.write_text(page.read_text().replace("ADDRESS", address))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    with subprocess.Popen([*command, profile, page.as_uri()], stderr=subprocess.DEVNULL) as browser:
        server.handle_request()
        browser.terminate()
    server.server_close()
    return server.received


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.skipif("ORT_WEB" not in os.environ, reason="ORT_WEB must name onnxruntime-web/dist")
def test_the_page_in_a_browser(tmp_path):
    spec = importlib.util.spec_from_file_location("build", BUILD)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    html = build.page(pathlib.Path(os.environ["ORT_WEB"]), pretrained_path("cifar10_cnn"))
    paths = _pictures.save_all(tmp_path)
    addresses = [
        f"data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}" for p in paths
    ]
    page = tmp_path / "page.html"
    page.write_text(html + SCRIPT.replace("PICTURES", json.dumps(addresses)))
    found = results_of(page)
    assert found is not None, "the page sent no results within two minutes"
    predictor = load_pretrained("cifar10_cnn")
    pixels = predictor.preprocessing.read(list(map(str, paths)))
    for row, image in zip(found, pixels, strict=True):
        seen = np.uint8(row["pixels"]).reshape(image.shape)
        assert np.max(np.abs(seen.astype(int) - image)) <= 1  # rounding of the resizing
        expected = predictor(seen[None])[0]
        np.testing.assert_allclose(row["logits"], expected, atol=1e-4 * np.abs(expected).max())
