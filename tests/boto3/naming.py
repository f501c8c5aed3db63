"""Every way to name a function, and every wrong one."""

import json

from checks import ARN, check, equal

ACCOUNT = "000000000000"


@check
def every_form_of_a_name_names_it(kiln):
    kiln.create("f")
    for name in ["f", "function:f", f"{ACCOUNT}:function:f", f"{ACCOUNT}:f", f"{ARN}:f"]:
        for suffix in ["", ":$LATEST"]:
            shown = kiln.client.get_function(FunctionName=name + suffix)["Configuration"]
            equal((shown["FunctionArn"], shown["Version"]), (f"{ARN}:f{suffix}", "$LATEST"))
            answer = kiln.invoke(name + suffix, {"do": "headers"})
            equal(json.loads(answer["payload"])["lambda-runtime-invoked-function-arn"], f"{ARN}:f{suffix}")
        equal(kiln.client.get_function_configuration(FunctionName=name, Qualifier="$LATEST")["FunctionArn"], f"{ARN}:f:$LATEST")
        kiln.client.update_function_configuration(FunctionName=name, Description=name)
        equal(kiln.client.get_function_configuration(FunctionName="f")["Description"], name)
    kiln.client.delete_function(FunctionName=f"{ARN}:f")


@check
def a_function_may_be_created_by_its_arn(kiln):
    for number, name in enumerate([f"{ACCOUNT}:function:made0", f"{ARN}:made1"]):
        equal(kiln.client.create_function(**kiln.settings(name))["FunctionName"], f"made{number}")


@check
def a_path_may_be_encoded_or_not(kiln):
    kiln.create("f")
    for path in [f"{ARN}:f", f"{ARN}:f".replace(":", "%3A"), f"{ARN}:f".replace(":", "%3a"), "%66", f"{ARN}%3Af:$LATEST",
                 f"{ARN}:f:%24LATEST"]:
        answer = kiln.raw("GET", f"/2015-03-31/functions/{path}/configuration")
        equal((answer.status, json.loads(answer.content).get("FunctionName")), (200, "f"))
        answer = kiln.raw("POST", f"/2015-03-31/functions/{path}/invocations", body=b'{"do":"echo"}')
        equal((answer.status, answer.content), (200, b'{"do":"echo"}'))
    for query in ["Qualifier=$LATEST", "Qualifier=%24LATEST"]:
        equal(kiln.raw("GET", f"/2015-03-31/functions/f?{query}").status, 200)
    # Twice encoded is another name.
    equal(kiln.raw("GET", "/2015-03-31/functions/%2566").status, 400)
    for path in ["arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", f"{ARN}:f"]:
        equal(kiln.raw("GET", f"/2017-03-31/tags/{path}").status, 200)


@check
def other_qualifiers_are_not_there(kiln):
    kiln.create("f")
    for qualifier in ["1", "live"]:
        for operation in (kiln.client.get_function, kiln.client.get_function_configuration, kiln.client.invoke):
            with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:f:{qualifier}"):
                operation(FunctionName="f", Qualifier=qualifier)
            with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {ARN}:f:{qualifier}"):
                operation(FunctionName=f"f:{qualifier}")
    text = "The derived qualifier from the function name does not match the specified qualifier."
    for operation in (kiln.client.get_function, kiln.client.invoke):
        with kiln.refused("InvalidParameterValueException", 400, text):
            operation(FunctionName="f:1", Qualifier="2")
    kiln.client.invoke(FunctionName="f:$LATEST", Qualifier="$LATEST")


@check
def other_regions_and_accounts_are_out_of_reach(kiln):
    kiln.create("f")
    elsewhere = ARN.replace("us-east-1", "eu-west-1")
    text = "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"
    other = ARN.replace(ACCOUNT, "111111111111")
    for operation in (kiln.client.get_function, kiln.client.invoke, kiln.client.delete_function):
        with kiln.refused("ResourceNotFoundException", 404, text):
            operation(FunctionName=f"{elsewhere}:f")
        with kiln.refused("ResourceNotFoundException", 404, f"Function not found: {other}:f"):
            operation(FunctionName=f"{other}:f")
    with kiln.refused("ResourceNotFoundException", 404, text):
        kiln.client.create_function(**kiln.settings(f"{elsewhere}:new"))
    with kiln.refused("AccessDeniedException", 403, "not authorized to create a function in account 111111111111…"):
        kiln.client.create_function(**kiln.settings(f"{other}:new"))


@check
def what_is_no_name_fails_the_models_pattern(kiln):
    for name in ["a b", "a/b", "ä", "a:b:c:d", "arn:aws:s3:::x"]:
        with kiln.refused("ValidationException", 400,
                          f"1 validation error detected: Value '{name}' at 'functionName' failed to satisfy constraint: Member "
                          "must satisfy regular expression pattern: (arn:…"):
            kiln.careless.get_function(FunctionName=name)
        with kiln.refused("ValidationException", 400, f"1 validation error detected: Value '{name}' at 'functionName' …"):
            kiln.careless.create_function(**kiln.settings(name))
    with kiln.refused("ValidationException", 400,
                      f"1 validation error detected: Value '{'x' * 171}' at 'functionName' failed to satisfy constraint: Member "
                      "must have length less than or equal to 170"):
        kiln.careless.invoke(FunctionName="x" * 171)
    # 64 at creation, and in Lambda's own name for the error.
    with kiln.refused("InvalidParameterValueException", 400,
                      f"1 validation error detected: Value '{'x' * 65}' at 'functionName' failed to satisfy constraint: Member "
                      "must have length less than or equal to 64"):
        kiln.client.create_function(**kiln.settings("x" * 65))
    with kiln.refused("ValidationException", 400, "1 validation error detected: Value 'f:1' at 'functionName' failed to satisfy…"):
        kiln.client.create_function(**kiln.settings("f:1"))
    kiln.client.create_function(**kiln.settings("x" * 64))
    equal(kiln.client.get_function(FunctionName="x" * 64)["Configuration"]["FunctionName"], "x" * 64)
