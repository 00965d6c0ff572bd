"""``python -m moorage``."""

from moorage.cli.quick.entry import main

main()
