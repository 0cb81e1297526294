package kv

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/target"
	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

func (c *Commands) scan() *cobra.Command {
	var prefix, start, end string
	var reverse, keysOnly bool
	limit := uint32(100)
	cmd := &cobra.Command{
		Use:     "scan NAMESPACE ID",
		Short:   "List the items of an id in the order of their keys",
		Example: "  prismctl kv scan user-profiles alice --prefix settings/ --limit 0",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &datav1.ScanRequest{Namespace: args[0], Reverse: reverse, KeysOnly: keysOnly}
			for into, text := range map[*[]byte]string{&req.Id: args[1], &req.Prefix: prefix, &req.Start: start, &req.End: end} {
				b, err := c.decode(text)
				if err != nil {
					return err
				}
				*into = b
			}
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.ScanResponse, error) {
				all, err := target.Pages(limit, func(token []byte, size uint32) (*datav1.ScanResponse, error) {
					req.PageToken, req.Limit = token, size
					return kv.Scan(ctx, req)
				})
				c.more(all.GetNextPageToken(), "items")
				return all, err
			}, func(w io.Writer, all *datav1.ScanResponse) { c.items(w, all.GetItems(), keysOnly) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&prefix, "prefix", "", "only keys that begin so")
	flags.StringVar(&start, "start", "", "only keys from this one on")
	flags.StringVar(&end, "end", "", "only keys before this one")
	flags.BoolVar(&reverse, "reverse", false, "from the last key to the first")
	flags.BoolVar(&keysOnly, "keys-only", false, "leave out the values")
	flags.Uint32Var(&limit, "limit", limit, "the most items to list; 0 for all")
	return cmd
}

// more tells a person that a list goes on.
func (c *Commands) more(token []byte, what string) {
	if len(token) > 0 && c.term.Format == terminal.Table {
		c.term.Note("there are more %s; list them with --limit 0", what)
	}
}

func (c *Commands) items(w io.Writer, items []*datav1.Item, keysOnly bool) {
	header := []string{"KEY", "BYTES", "MODIFIED", "EXPIRES", "VALUE"}
	if keysOnly {
		header = []string{"KEY", "MODIFIED", "EXPIRES"}
	}
	g := terminal.NewGrid(header...)
	for _, i := range items {
		modified, expires := terminal.Time(i.GetModifiedAt()), terminal.Time(i.GetExpireAt())
		if keysOnly {
			g.Row(c.show(i.GetKey()), modified, expires)
			continue
		}
		g.Row(c.show(i.GetKey()), strconv.Itoa(len(i.GetValue())), modified, expires, preview(i.GetValue()))
	}
	g.Write(w)
}

// preview is the beginning of a value, if a person can read it.
func preview(value []byte) string {
	const most = 60
	if !printable(value) {
		return "(binary)"
	}
	runes := []rune(string(value))
	if len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return string(runes)
}

func (c *Commands) ids() *cobra.Command {
	limit := uint32(1000)
	cmd := &cobra.Command{
		Use:     "ids NAMESPACE",
		Short:   "List the ids of a namespace, in no order; one may come twice",
		Example: "  prismctl kv ids user-profiles --limit 0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ask(c, cmd, func(ctx context.Context, kv datav1.KeyValueClient) (*datav1.ListIdsResponse, error) {
				all, err := target.Pages(limit, func(token []byte, size uint32) (*datav1.ListIdsResponse, error) {
					return kv.ListIds(ctx, &datav1.ListIdsRequest{Namespace: args[0], Limit: size, PageToken: token})
				})
				c.more(all.GetNextPageToken(), "ids")
				return all, err
			}, func(w io.Writer, all *datav1.ListIdsResponse) {
				for _, id := range all.GetIds() {
					io.WriteString(w, terminal.Clean(c.show(id))+"\n")
				}
			})
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", limit, "the most ids to list; 0 for all")
	return cmd
}
