// Command prismctl is the person's hand on Prism.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/root"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends prismctl at once
	width, _, err := term.GetSize(int(os.Stderr.Fd()))
	if err != nil {
		width = 0 // not a terminal: nothing has to fit
	}
	code := root.Run(ctx, &terminal.Terminal{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		OutTTY: term.IsTerminal(int(os.Stdout.Fd())), ErrTTY: term.IsTerminal(int(os.Stderr.Fd())),
		Width: width, Getenv: os.Getenv,
	}, os.Args[1:])
	os.Exit(code)
}
