// Takes in the webhooks of a code host: believes only what is signed with the secret that both sides know.
//
// A request with a wrong signature is answered with its status. A signed one that cannot be understood is an error: somebody
// has to look at it.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

type push struct {
	Ref        string `json:"ref"`
	Repository struct {
		Name string `json:"full_name"`
	} `json:"repository"`
	Commits []struct {
		Message string `json:"message"`
	} `json:"commits"`
}

type webhook struct {
	secret []byte
}

func (w webhook) handle(ctx context.Context, request events.APIGatewayProxyRequest) (events.APIGatewayProxyResponse, error) {
	if !w.isSigned(request.Body, header(request, "X-Hub-Signature-256")) {
		log.Print("refused: not signed with our secret")
		return answer(http.StatusUnauthorized, "wrong signature"), nil
	}
	var pushed push
	if err := json.Unmarshal([]byte(request.Body), &pushed); err != nil {
		return events.APIGatewayProxyResponse{}, fmt.Errorf("a signed body that is no push: %w", err)
	}
	log.Printf("%d commits to %s", len(pushed.Commits), pushed.Ref)
	return answer(http.StatusAccepted, fmt.Sprintf("%s: %d commits to %s", pushed.Repository.Name, len(pushed.Commits), pushed.Ref)), nil
}

func (w webhook) isSigned(body, signature string) bool {
	given, err := hex.DecodeString(strings.TrimPrefix(signature, "sha256="))
	if err != nil {
		return false
	}
	mac := hmac.New(sha256.New, w.secret)
	mac.Write([]byte(body))
	// In constant time: how long a comparison takes would tell a stranger how much of it is right.
	return hmac.Equal(given, mac.Sum(nil))
}

// Header names have no case, but an event's have.
func header(request events.APIGatewayProxyRequest, name string) string {
	for given, value := range request.Headers {
		if strings.EqualFold(given, name) {
			return value
		}
	}
	return ""
}

func answer(status int, text string) events.APIGatewayProxyResponse {
	return events.APIGatewayProxyResponse{StatusCode: status, Headers: map[string]string{"content-type": "text/plain"}, Body: text}
}

func main() {
	secret := os.Getenv("WEBHOOK_SECRET")
	if secret == "" {
		// The environment's init fails, and its caller is told: better than a webhook that believes everybody.
		log.Fatal("WEBHOOK_SECRET is not set")
	}
	lambda.Start(webhook{secret: []byte(secret)}.handle)
}
