// What the rows of tests/behaviours.rs ask of a function, in Go on aws-lambda-go.
package main

/*
#include <signal.h>
#include "../native/answer.c"

// Go makes a crash of its own out of a signal that the program sends itself.
static void die_by(int number) {
	signal(number, SIG_DFL);
	raise(number);
}
*/
import "C"

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

var invocations int
var held [][]byte

// RangeError is what a caller sees as errorType.
type RangeError struct{ message string }

func (e RangeError) Error() string { return e.message }

type wish struct {
	Do, Message, Text, To, Path string
	N, Ms                       int
}

func handler(ctx context.Context, event json.RawMessage) (interface{}, error) {
	invocations++
	var w wish
	// What is no object wishes nothing.
	_ = json.Unmarshal(event, &w)
	switch w.Do {
	case "", "echo":
		return event, nil
	case "respond_bytes":
		return strings.Repeat("x", w.N-2), nil
	case "error":
		log.Print(w.Message)
		return nil, RangeError{w.Message}
	case "unhandled":
		panic(RangeError{w.Message})
	case "sleep":
		time.Sleep(time.Duration(w.Ms) * time.Millisecond)
		return nil, nil
	case "hold_mib":
		for i := 0; i < w.N; i++ {
			piece := make([]byte, 1<<20)
			for at := range piece {
				piece[at] = 1
			}
			held = append(held, piece)
		}
		time.Sleep(10 * time.Second)
		return len(held), nil
	case "exit":
		os.Exit(w.N)
	case "signal":
		C.die_by(C.int(w.N))
	case "global":
		return map[string]int{"invocations": invocations}, nil
	case "write":
		return nil, os.WriteFile(w.Path, []byte(w.Text), 0o644)
	case "read":
		text, err := os.ReadFile(w.Path)
		return string(text), err
	case "log":
		log.Print(w.Text)
		return nil, nil
	case "print":
		to := os.Stdout
		if w.To == "stderr" {
			to = os.Stderr
		}
		_, err := fmt.Fprintln(to, w.Text)
		return nil, err
	case "env":
		vars := map[string]string{}
		for _, line := range os.Environ() {
			name, value, _ := strings.Cut(line, "=")
			vars[name] = value
		}
		return vars, nil
	case "native":
		return int(C.kiln_answer()), nil
	case "context":
		return tell(ctx), nil
	}
	return nil, RangeError{w.Do + ": no such behaviour"}
}

func tell(ctx context.Context) map[string]interface{} {
	lc, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	told := map[string]interface{}{
		"name":    lambdacontext.FunctionName,
		"version": lambdacontext.FunctionVersion,
		"arn":     lc.InvokedFunctionArn,
		"memory":  strconv.Itoa(lambdacontext.MemoryLimitInMB),
		"id":      lc.AwsRequestID,
		"group":   lambdacontext.LogGroupName,
		"stream":  lambdacontext.LogStreamName,
		"left":    time.Until(deadline).Milliseconds(),
	}
	if custom := lc.ClientContext.Custom; custom != nil {
		told["client"] = custom
	}
	return told
}

func main() {
	if os.Getenv("PROBE_INIT") == "error" {
		log.Fatal("init was told to fail")
	}
	lambda.Start(handler)
}
