package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	"github.com/prism-gateway/prism/shared/secret"
	"github.com/prism-gateway/prism/shared/servicetoken"
)

func loginCommand(term *terminal.Terminal, dir *string) *cobra.Command {
	password := Password
	cmd := &cobra.Command{
		Use:   "login USER",
		Short: "Log a user in at the issuer of a local Prism",
		Long: `Log a user in at the issuer of a Prism that was started with --auth. The calls of prismctl are the user's from then on, until
another logs in or the token ends, after 12 hours or when the issuer is started again. The users are ` + names() + `.`,
		Example:   "  prismctl local login ann",
		Args:      cobra.ExactArgs(1),
		ValidArgs: strings.Split(names(), ", "),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := openDirectory(*dir)
			if err != nil {
				return err
			}
			issuer, err := issuerOf(d)
			if err != nil {
				return err
			}
			if !known(args[0]) {
				return terminal.Misusef("there is no user %s: the users are %s", args[0], names())
			}
			i := &identity{dir: directory(d.file("identity")), dex: Program{Address: issuer}}
			t, err := i.logIn(cmd.Context(), args[0], password)
			if err != nil {
				return err
			}
			term.Note("%s is logged in until %s; the token is in %s", args[0], t.ExpiresAt.Local().Format(time.DateTime), i.token())
			return nil
		},
	}
	cmd.Flags().StringVar(&password, "password", password, "the user's password")
	return cmd
}

// issuerOf is the address of the issuer of the Prism that runs in a directory.
func issuerOf(d directory) (string, error) {
	s, err := d.loadState()
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no local Prism runs in %s; start one with: prismctl local up --auth", d)
	}
	if err != nil {
		return "", err
	}
	for _, p := range s.Programs {
		if p.Name == "dex" {
			return p.Address, nil
		}
	}
	return "", errors.New("the local Prism does not ask its callers who they are; start it with: prismctl local up --auth")
}

// token is the file with the token of who is logged in.
func (i *identity) token() string { return i.dir.file("token") }

// logIn makes prismctl's calls those of a user.
func (i *identity) logIn(ctx context.Context, user, password string) (servicetoken.Token, error) {
	t, err := logIn(ctx, i.issuer(), user, password)
	if err != nil {
		return t, err
	}
	if err := os.WriteFile(i.token()+".new", []byte(t.Text.Reveal()), 0o600); err != nil {
		return t, err
	}
	return t, os.Rename(i.token()+".new", i.token())
}

// logIn asks an issuer for a user's token.
func logIn(ctx context.Context, issuer, user, password string) (servicetoken.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	form := url.Values{
		"grant_type": {"password"}, "scope": {"openid email profile groups"}, "username": {user + "@example.com"}, "password": {password},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return servicetoken.Token{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth("prism", Password)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return servicetoken.Token{}, fmt.Errorf("the issuer does not answer: %w", err)
	}
	defer answer.Body.Close()
	var got struct {
		IDToken   string `json:"id_token"`
		ExpiresIn int64  `json:"expires_in"`
		Error     string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&got); err != nil || got.IDToken == "" {
		return servicetoken.Token{}, fmt.Errorf("the issuer does not log %s in: %s %s", user, answer.Status, got.Error)
	}
	return servicetoken.Token{Text: secret.New(got.IDToken), ExpiresAt: time.Now().Add(time.Duration(got.ExpiresIn) * time.Second)}, nil
}

// shown is a user's token as a source of tokens.
type shown servicetoken.Token

// Token returns it.
func (s shown) Token(context.Context) (servicetoken.Token, error) { return servicetoken.Token(s), nil }
