package target

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/prism-gateway/prism/shared/client"
)

// Ask calls the control plane within the time of one call, and prints what it answers: as it is in JSON or YAML, or as
// the text that table writes. Its errors say what to do when nobody answered. This and AskData are what a command's RunE
// does, unless it waits or watches.
func Ask[M proto.Message](f *Flags, cmd *cobra.Command, call func(context.Context, *client.Control) (M, error), table func(io.Writer, M)) error {
	return f.WithControl(cmd.Context(), func(ctx context.Context, control *client.Control) error {
		answer, err := call(ctx, control)
		if err != nil {
			return err
		}
		return f.term.Print(answer, func(w io.Writer) { table(w, answer) })
	})
}

// AskData is Ask of a proxy.
func AskData[M proto.Message](f *Flags, cmd *cobra.Command, call func(context.Context, *client.Client) (M, error), table func(io.Writer, M)) error {
	return f.WithData(cmd.Context(), func(ctx context.Context, data *client.Client) error {
		answer, err := call(ctx, data)
		if err != nil {
			return err
		}
		return f.term.Print(answer, func(w io.Writer) { table(w, answer) })
	})
}

// maxPage is the most entries that are asked for at once.
const maxPage = 1000

// paged is an answer that may be one page of several.
type paged[T string | []byte] interface {
	proto.Message
	GetNextPageToken() T
}

// Pages asks for one page after the other until there is no more, or until there are as many entries as limit says if it
// is not 0, and joins them. The page token of what it returns says whether there are more.
func Pages[M paged[T], T string | []byte](limit uint32, page func(token T, size uint32) (M, error)) (M, error) {
	var token T
	var all M
	for first, have := true, 0; ; first = false {
		size := uint32(maxPage)
		if limit > 0 {
			size = min(limit-uint32(have), maxPage)
		}
		next, err := page(token, size)
		if err != nil {
			return all, err
		}
		token = next.GetNextPageToken()
		if first {
			all = next
		} else {
			m := all.ProtoReflect()
			m.Clear(m.Descriptor().Fields().ByName("next_page_token")) // the last one may be empty, which would not replace it
			proto.Merge(all, next)
		}
		have = entries(all)
		if len(token) == 0 || limit > 0 && have >= int(limit) {
			return all, nil
		}
	}
}

// entries counts what a list holds.
func entries(m proto.Message) (n int) {
	for field, value := range m.ProtoReflect().Range {
		if field.IsList() {
			n += value.List().Len()
		}
	}
	return n
}

// Complete completes the first argument of a command with those names that begin with what was typed. A control plane that
// does not answer quickly has nothing to offer.
func (f *Flags) Complete(names func(ctx context.Context, control *client.Control, typed string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) (found []string, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		_ = f.WithoutLimit(ctx, func(ctx context.Context, control *client.Control) error { // no answer: nothing to offer
			all, err := names(ctx, control, typed)
			found = slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, typed) })
			return err
		})
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
