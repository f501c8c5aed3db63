"""An instance with `profile = "current"`, and with room for one invocation at a time."""

import base64
import json
import math
import re
import threading
import time

from checks import check, equal, insist


def report(answer):
    """REPORT's numbers, by their names."""
    line = base64.b64decode(answer["LogResult"]).decode().splitlines()[-1]
    return {name: float(number) for name, number in re.findall(r"\t([A-Z][A-Za-z ]+): ([0-9.]+) M?m?[sB]", line)}


@check
def sizes_are_todays(kiln):
    kiln.create("f", MemorySize=129, EphemeralStorage={"Size": 700}, Timeout=60)
    shown = kiln.client.get_function_configuration(FunctionName="f")
    equal((shown["MemorySize"], shown["EphemeralStorage"]), (129, {"Size": 700}))
    filled = json.loads(kiln.invoke("f", {"fill_tmp_mib": 800})["payload"])
    assert 690 <= filled["written_mib"] <= 700 and filled["error"] == "ENOSPC", filled
    answer = kiln.invoke("f", {"do": "env"}, LogType="Tail")
    equal((json.loads(answer["payload"])["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], report(answer)["Memory Size"]), ("129", 129))
    for size in (3009, 10240):
        kiln.client.update_function_configuration(FunctionName="f", MemorySize=size)
    kiln.client.update_function_configuration(FunctionName="f", EphemeralStorage={"Size": 10240})
    text = "1 validation error detected: Value '{}' at '{}' failed to satisfy constraint: Member must have value {} than or equal to {}"
    for settings, *words in [
        ({"MemorySize": 10241}, 10241, "memorySize", "less", 10240),
        ({"MemorySize": 127}, 127, "memorySize", "greater", 128),
        ({"EphemeralStorage": {"Size": 10241}}, 10241, "ephemeralStorage.size", "less", 10240),
        ({"EphemeralStorage": {"Size": 511}}, 511, "ephemeralStorage.size", "greater", 512),
    ]:
        with kiln.refused("ValidationException", 400, text.format(*words)):
            kiln.careless.update_function_configuration(FunctionName="f", **settings)


@check
def milliseconds_are_billed_and_init_with_them(kiln):
    kiln.create("f", Environment={"Variables": {"PROBE_INIT": "slow:230"}})
    cold = report(kiln.invoke("f", {"sleep": 30}, LogType="Tail"))
    assert cold["Init Duration"] > 230, cold
    # Both are shown with two digits behind the point, and billed before they are rounded.
    assert abs(cold["Billed Duration"] - math.ceil(cold["Duration"] + cold["Init Duration"])) <= 1, cold
    warm = report(kiln.invoke("f", {"sleep": 30}, LogType="Tail"))
    assert "Init Duration" not in warm and 0 <= warm["Billed Duration"] - warm["Duration"] < 1.01, warm
    kiln.client.update_function_configuration(FunctionName="f", Timeout=1, Environment={})
    late = report(kiln.invoke("f", {"sleep": 20000}, LogType="Tail"))
    equal(late["Billed Duration"], 1000 + math.ceil(late["Init Duration"]))


@check
def who_comes_when_all_is_in_use_is_throttled(kiln):
    kiln.create("f", Timeout=30)
    kiln.invoke("f", {})
    throttled = kiln.exceptions.TooManyRequestsException
    # The other one may come first, and this one be refused: then it comes again.
    running = threading.Thread(target=insist, args=(throttled, lambda: kiln.invoke("f", {"sleep": 4000})))
    running.start()
    refused = None
    while running.is_alive() and refused is None:
        try:
            kiln.client.invoke(FunctionName="f", Payload=b"{}")
        except throttled as error:
            refused = error.response
        time.sleep(0.01)  # the pace of asking
    running.join()
    assert refused, "nobody was refused"
    equal((refused["Error"]["Code"], refused["Error"]["Message"]), ("TooManyRequestsException", "Rate Exceeded."))
    equal((refused["Reason"], refused["Type"]), ("ConcurrentInvocationLimitExceeded", "User"))
    metadata = refused["ResponseMetadata"]
    equal((metadata["HTTPStatusCode"], metadata["HTTPHeaders"]["retry-after"]), (429, "1"))
    kiln.invoke("f", {})


@check
def the_account_shows_the_instances_concurrency(kiln):
    equal(kiln.client.get_account_settings()["AccountLimit"]["ConcurrentExecutions"], 1)
