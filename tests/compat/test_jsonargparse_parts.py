"""The private parts of jsonargparse and argparse are what they were."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser
from upgrade import since

from raymed.compat import jsonargparse as compat


def test_an_upgrade_of_jsonargparse_left_options_and_files_of_defaults_to_be_hidden(tmp_path: Path) -> None:
    with since(compat):
        (tmp_path / "defaults.yaml").write_text("shown: 3\n")
        parser = ArgumentParser(default_config_files=[str(tmp_path / "defaults.yaml")])
        parser.add_argument("--shown", type=int, default=1)
        group = parser.add_argument_group("some group")
        group.add_argument("--hidden", type=int, default=2)
        assert all(word in parser.format_help() for word in ("--hidden", "some group", "defaults.yaml", "default: 3"))
        compat.hide_options(parser, {"help", "shown"})
        compat.hide_default_files(parser)
        text = parser.format_help()
        assert "--shown" in text and "default: 3" in text
        assert not any(word in text for word in ("--hidden", "some group"))
