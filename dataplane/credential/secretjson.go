package credential

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/prism-gateway/prism/shared/secret"
)

// maxSecretBytes bounds a secret, which is a few lines.
const maxSecretBytes = 64 << 10

// Parse reads a secret as it stands at a provider: a JSON object with username, password, api_key, token, certificate and
// private_key (PEM), ca (PEM), and metadata, an object of texts. At least one of them is there; others are ignored, as a
// cloud's own rotation adds some. The error tells nothing of what data holds and wraps ErrRefused.
func Parse(data []byte) (Credential, error) {
	var fields struct {
		Username    *string           `json:"username"`
		Password    *string           `json:"password"`
		APIKey      *string           `json:"api_key"`
		Token       *string           `json:"token"`
		Certificate *string           `json:"certificate"`
		PrivateKey  *string           `json:"private_key"`
		CA          *string           `json:"ca"`
		Metadata    map[string]string `json:"metadata"`
	}
	if len(data) > maxSecretBytes {
		return Credential{}, fmt.Errorf("the secret has more than %d bytes: %w", maxSecretBytes, ErrRefused)
	}
	if err := json.Unmarshal(data, &fields); err != nil {
		// What encoding/json says may quote the secret; only where it stopped is told.
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return Credential{}, fmt.Errorf("the secret's field %s is no text: %w", known(wrong.Field), ErrRefused)
		}
		return Credential{}, fmt.Errorf("the secret is no JSON object of texts: %w", ErrRefused)
	}
	text := func(s *string) secret.Text {
		if s == nil || *s == "" {
			return secret.Text{}
		}
		return secret.New(*s)
	}
	plain := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	c := Credential{
		Username: plain(fields.Username), Password: text(fields.Password), APIKey: text(fields.APIKey), Token: text(fields.Token),
		PrivateKey: text(fields.PrivateKey), Metadata: fields.Metadata,
	}
	if s := plain(fields.Certificate); s != "" {
		c.Certificate = []byte(s)
	}
	if s := plain(fields.CA); s != "" {
		c.Authorities = []byte(s)
	}
	if c.Username == "" && c.Password.IsZero() && c.APIKey.IsZero() && c.Token.IsZero() && c.PrivateKey.IsZero() {
		return Credential{}, fmt.Errorf("the secret has none of username, password, api_key, token, private_key: %w", ErrRefused)
	}
	return c, nil
}

// known returns the name of a field of ours and hides another's, which could be part of a secret.
func known(field string) string {
	switch field {
	case "username", "password", "api_key", "token", "certificate", "private_key", "ca", "metadata":
		return field
	}
	return "metadata"
}
