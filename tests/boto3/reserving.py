"""Reserved concurrency, and layers."""

import threading
import time
import urllib.parse

from checks import ARN, check, equal, insist, sha256, zip_of

LAYER = ARN.removesuffix(":function") + ":layer"


@check
def a_reserve_is_set_shown_counted_and_taken_away(kiln):
    kiln.create("f")
    before = kiln.client.get_function_configuration(FunctionName="f")["RevisionId"]
    assert "ReservedConcurrentExecutions" not in kiln.client.get_function_concurrency(FunctionName="f")
    equal(kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=7)["ReservedConcurrentExecutions"], 7)
    equal(kiln.client.get_function_concurrency(FunctionName="f")["ReservedConcurrentExecutions"], 7)
    equal(kiln.client.get_function(FunctionName="f")["Concurrency"], {"ReservedConcurrentExecutions": 7})
    limits = kiln.client.get_account_settings()["AccountLimit"]
    equal((limits["ConcurrentExecutions"], limits["UnreservedConcurrentExecutions"]), (1000, 993))
    equal(kiln.client.delete_function_concurrency(FunctionName="f")["ResponseMetadata"]["HTTPStatusCode"], 204)
    assert "Concurrency" not in kiln.client.get_function(FunctionName="f")
    equal(kiln.client.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"], 1000)
    equal(kiln.client.get_function_configuration(FunctionName="f")["RevisionId"], before)


@check
def a_reserve_that_cannot_be_is_refused_in_lambdas_words(kiln):
    kiln.create("f")
    parameter = "InvalidParameterValueException"
    with kiln.refused(parameter, 400, "Specified ReservedConcurrentExecutions for function decreases account's "
                      "UnreservedConcurrentExecution below its minimum value of [100]."):
        kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=901)
    kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=900)
    text = ("This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please "
            "specify either a function name or an unqualified function ARN.")
    for operation, more in [("put_function_concurrency", {"ReservedConcurrentExecutions": 1}), ("get_function_concurrency", {}),
                            ("delete_function_concurrency", {})]:
        with kiln.refused(parameter, 400, text):
            getattr(kiln.careless, operation)(FunctionName="f:$LATEST", **more)
        with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:nope"):
            getattr(kiln.client, operation)(FunctionName="nope", **more)
    with kiln.refused("ValidationException", 400, "1 validation error detected: Value '-1' at 'reservedConcurrentExecutions' failed …"):
        kiln.careless.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=-1)


@check
def who_comes_over_a_reserve_is_throttled_with_the_reason(kiln):
    throttled = kiln.exceptions.TooManyRequestsException
    told = ("Rate Exceeded.", "ReservedFunctionConcurrentInvocationLimitExceeded", 429, "1")

    def seen(error):
        answer = error.response
        metadata = answer["ResponseMetadata"]
        return (answer["Error"]["Message"], answer["Reason"], metadata["HTTPStatusCode"], metadata["HTTPHeaders"]["retry-after"])

    kiln.create("f", Timeout=30)
    kiln.create("other")
    kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
    try:
        kiln.invoke("f", {})
        raise AssertionError("a reserve of nothing lets nobody in")
    except throttled as error:
        equal(seen(error), told)
    equal(kiln.client.invoke(FunctionName="f", InvocationType="DryRun")["StatusCode"], 204)
    kiln.client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=1)
    kiln.invoke("f", {})
    # The other one may come first, and this one be refused: then it comes again.
    running = threading.Thread(target=insist, args=(throttled, lambda: kiln.invoke("f", {"sleep": 4000})))
    running.start()
    refused = None
    while running.is_alive() and refused is None:
        try:
            kiln.invoke("f", {"do": "echo"})
        except throttled as error:
            refused = error
        time.sleep(0.01)  # the pace of asking
    assert refused, "nobody was refused"
    equal(seen(refused), told)
    equal(kiln.invoke("other", {"do": "echo"})["StatusCode"], 200)
    running.join()
    kiln.client.delete_function_concurrency(FunctionName="f")
    kiln.invoke("f", {"do": "echo"})


@check
def a_layer_is_published_mounted_listed_downloaded_and_deleted(kiln):
    first, second = zip_of({"data.txt": "first"}), zip_of({"data.txt": "second"})
    made = kiln.client.publish_layer_version(LayerName="layer", Content={"ZipFile": first}, Description="d",
                                             CompatibleRuntimes=["provided.al2023"])
    equal((made["ResponseMetadata"]["HTTPStatusCode"], made["Version"], made["LayerVersionArn"]), (201, 1, f"{LAYER}:layer:1"))
    equal((made["Content"]["CodeSha256"], made["Content"]["CodeSize"]), (sha256(first), len(first)))
    equal(kiln.client.publish_layer_version(LayerName="layer", Content={"ZipFile": second})["Version"], 2)
    kiln.create("f", Layers=[f"{LAYER}:layer:1"])
    equal(kiln.invoke("f", {"read": "/opt/data.txt"})["payload"], b'"first"')
    shown = kiln.client.get_function_configuration(FunctionName="f")
    equal(shown["Layers"], [{"Arn": f"{LAYER}:layer:1", "CodeSize": len(first)}])
    kiln.client.update_function_configuration(FunctionName="f", Layers=[f"{LAYER}:layer:2"])
    equal(kiln.invoke("f", {"read": "/opt/data.txt"})["payload"], b'"second"')
    location = kiln.client.get_layer_version(LayerName="layer", VersionNumber=1)["Content"]["Location"]
    equal(kiln.raw("GET", urllib.parse.urlsplit(location).path).content, first)
    by_arn = kiln.client.get_layer_version_by_arn(Arn=f"{LAYER}:layer:2")
    equal((by_arn["Version"], by_arn["Content"]["CodeSha256"]), (2, sha256(second)))
    equal([layer["LayerName"] for layer in kiln.client.list_layers()["Layers"]], ["layer"])
    versions = [version["Version"] for page in kiln.client.get_paginator("list_layer_versions").paginate(LayerName="layer")
                for version in page["LayerVersions"]]
    equal(versions, [2, 1])
    for version in (1, 2, 7):
        equal(kiln.client.delete_layer_version(LayerName="layer", VersionNumber=version)["ResponseMetadata"]["HTTPStatusCode"], 204)
    equal(kiln.client.list_layers()["Layers"], [])
    equal(kiln.invoke("f", {"read": "/opt/data.txt"})["payload"], b'"second"')
    with kiln.refused("InvalidParameterValueException", 400, f"Layer version {LAYER}:layer:1 does not exist."):
        kiln.client.update_function_configuration(FunctionName="f", Layers=[f"{LAYER}:layer:1"])
    with kiln.refused("ResourceNotFoundException", 404, "The resource you requested does not exist."):
        kiln.client.get_layer_version(LayerName="layer", VersionNumber=1)
    kiln.client.update_function_configuration(FunctionName="f", Layers=[])
    assert "Layers" not in kiln.client.get_function_configuration(FunctionName="f")
