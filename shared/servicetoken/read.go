package servicetoken

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prism-gateway/prism/shared/secret"
)

// maxBytes bounds a token and what a metadata server answers.
const maxBytes = 64 << 10

// fileReader reads a file, which something else replaces in time. With an audience, the token must be for it.
func fileReader(path, audience string) func(context.Context) (Token, error) {
	return func(context.Context) (Token, error) {
		f, err := os.Open(path)
		if err != nil {
			return Token{}, err
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
		if err != nil {
			return Token{}, err
		}
		token, audiences, err := parse(text)
		if err == nil && audience != "" && !slices.Contains(audiences, audience) {
			err = fmt.Errorf("the token is for %q, not for %q", audiences, audience)
		}
		if err != nil {
			return Token{}, fmt.Errorf("%s: %w", path, err)
		}
		return token, nil
	}
}

// parse reads what a token says of itself, whose truth is not this side's business. One that is no JWT says nothing. The
// error tells nothing of it.
func parse(text []byte) (Token, []string, error) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxBytes || bytes.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Token{}, nil, errors.New("is not a token")
	}
	token := Token{Text: secret.New(string(text))}
	parts := strings.Split(string(text), ".")
	if len(parts) != 3 {
		return token, nil, nil
	}
	var claims struct {
		Expires  float64   `json:"exp"`
		Audience audiences `json:"aud"`
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return token, nil, nil
	}
	if claims.Expires > 0 && claims.Expires < 1<<40 {
		token.ExpiresAt = time.Unix(int64(claims.Expires), 0)
	}
	return token, claims.Audience, nil
}

// audiences is the claim aud: a text, or a list.
type audiences []string

func (a *audiences) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// googleToken asks the metadata server of Google for an identity token of the default service account.
func googleToken(ctx context.Context, client *http.Client, address, audience string) (Token, error) {
	query := url.Values{"audience": {audience}, "format": {"full"}}
	body, header, err := ask(ctx, client, address+"/computeMetadata/v1/instance/service-accounts/default/identity?"+query.Encode(), "Metadata-Flavor", "Google")
	if err != nil {
		return Token{}, err
	}
	if header.Get("Metadata-Flavor") != "Google" {
		return Token{}, errors.New("what answered is not Google's metadata server")
	}
	token, _, err := parse(body)
	if err != nil {
		return Token{}, fmt.Errorf("the answer of Google's metadata server %w", err)
	}
	return token, nil
}

// azureToken asks the metadata service of Azure for a token of the machine's managed identity; id, when there is one, says
// of which.
func azureToken(ctx context.Context, client *http.Client, address, audience, id string) (Token, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {audience}}
	if id != "" {
		query.Set("client_id", id)
	}
	body, _, err := ask(ctx, client, address+"/metadata/identity/oauth2/token?"+query.Encode(), "Metadata", "true")
	if err != nil {
		return Token{}, err
	}
	var answer struct {
		Token   string `json:"access_token"`
		Expires string `json:"expires_on"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return Token{}, errors.New("the answer of Azure's metadata service has no token")
	}
	token, _, err := parse([]byte(answer.Token))
	if err != nil {
		return Token{}, fmt.Errorf("the answer of Azure's metadata service %w", err)
	}
	if seconds, err := strconv.ParseInt(answer.Expires, 10, 64); err == nil {
		token.ExpiresAt = time.Unix(seconds, 0)
	}
	return token, nil
}

// ask gets what a metadata server answers. The header shows the server that no one was tricked into asking.
func ask(ctx context.Context, client *http.Client, address, header, value string) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set(header, value)
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the metadata server answered %d", response.StatusCode)
	}
	return body, response.Header, nil
}
