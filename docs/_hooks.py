"""Hooks of the documentation site: pages of the reference, and links to files of the repository."""

import ast
import pathlib
import posixpath
import re
import tomllib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "mlg_jax"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def on_config(config):
    """The repository's address stands in pyproject.toml."""
    config.repo_url, config.repo_name = REPOSITORY, PACKAGE.name
    return config


def on_files(files, config):
    """A page for every public sub-package, with every public name."""
    for path in sorted(PACKAGE.glob("[a-z]*")):
        init = path / "__init__.py"
        source = init if init.is_file() else path
        if source.suffix == ".py":
            uri = f"reference/{path.stem}.md"
            files.append(File.generated(config, uri, content=_reference(path.stem, source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links that leave the documentation to the repository."""

    def replaced(match):
        target = posixpath.normpath(posixpath.join("docs", page.file.src_uri, "..", match[1]))
        return match[0] if target.startswith("docs/") else f"]({REPOSITORY}/blob/main/{target})"

    return re.sub(r"\]\((\.\./[^)#]+)\)", replaced, markdown)


def _reference(name, source):
    tree = ast.parse(source.read_text())
    names = sorted(_public(tree))
    text = [f"# mlg_jax.{name}", "", ast.get_docstring(tree), ""]
    for member in names:
        text += [f"::: mlg_jax.{name}.{member}", ""]
    return "\n".join(text)


def _public(tree):
    """Names that are imported under their own name, as type checkers see it; else definitions."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname == alias.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
