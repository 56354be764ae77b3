"""The command line: ``python -m medcl_monai VERB``; ``VERB --help`` says all about one."""

import fire

from medcl_monai.commands.bundle import bundle
from medcl_monai.commands.demo import demo
from medcl_monai.commands.inspect import inspect
from medcl_monai.commands.knobs import knobs
from medcl_monai.commands.transfer import transfer
from medcl_monai.data.example.population import example_population

VERBS = {
    "example_data": example_population,
    "demo": demo,
    "inspect": inspect,
    "knobs": knobs,
    "bundle": bundle,
    "transfer": transfer,
}


def main() -> None:
    """Run one verb; an error of the user's input ends with its one line and exit status 1."""
    try:
        fire.Fire(VERBS, name="python -m medcl_monai", serialize=lambda result: "" if result is None else str(result))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
