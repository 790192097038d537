import subprocess
import sys

HEAVY = ("torch", "ray", "deepspeed", "matplotlib", "jinja2", "boto3")


def test_observe__imports_nothing_heavy() -> None:
    modules = ["events", "metrics", "goodput", "status", "progress", "logs", "report"]
    code = f"import sys, {', '.join(f'heliostat.observe.{name}' for name in modules)}\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
