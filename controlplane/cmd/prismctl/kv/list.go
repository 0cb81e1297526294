package kv

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
)

// pageSize is the most that one call asks for.
const pageSize = 1000

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
			return c.call(cmd, func(ctx context.Context, kv datav1.KeyValueClient) error {
				all := &datav1.ScanResponse{}
				for {
					req.Limit = page(limit, len(all.Items))
					resp, err := kv.Scan(ctx, req)
					if err != nil {
						return err
					}
					all.Items = append(all.Items, resp.GetItems()...)
					all.NextPageToken = resp.GetNextPageToken()
					req.PageToken = all.NextPageToken
					if len(req.PageToken) == 0 || limit > 0 && len(all.Items) >= int(limit) {
						break
					}
				}
				err := c.term.Print(all, func(w io.Writer) { c.items(w, all.GetItems(), keysOnly) })
				if len(all.GetNextPageToken()) > 0 && c.term.Format == terminal.Table {
					c.term.Note("there are more items; list them with --limit 0")
				}
				return err
			})
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

// page is how many to ask for next; a limit of 0 is none.
func page(limit uint32, have int) uint32 {
	if limit == 0 {
		return pageSize
	}
	return min(limit-uint32(have), pageSize)
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
			return c.call(cmd, func(ctx context.Context, kv datav1.KeyValueClient) error {
				all := &datav1.ListIdsResponse{}
				req := &datav1.ListIdsRequest{Namespace: args[0]}
				for {
					req.Limit = page(limit, len(all.Ids))
					resp, err := kv.ListIds(ctx, req)
					if err != nil {
						return err
					}
					all.Ids = append(all.Ids, resp.GetIds()...)
					all.NextPageToken = resp.GetNextPageToken()
					req.PageToken = all.NextPageToken
					if len(req.PageToken) == 0 || limit > 0 && len(all.Ids) >= int(limit) {
						break
					}
				}
				err := c.term.Print(all, func(w io.Writer) {
					for _, id := range all.GetIds() {
						io.WriteString(w, terminal.Clean(c.show(id))+"\n")
					}
				})
				if len(all.GetNextPageToken()) > 0 && c.term.Format == terminal.Table {
					c.term.Note("there are more ids; list them with --limit 0")
				}
				return err
			})
		},
	}
	cmd.Flags().Uint32Var(&limit, "limit", limit, "the most ids to list; 0 for all")
	return cmd
}
