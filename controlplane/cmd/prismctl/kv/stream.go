package kv

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
)

func (c *Commands) readValue() *cobra.Command {
	var offset uint64
	cmd := &cobra.Command{
		Use:     "read NAMESPACE ID [KEY]",
		Short:   "Write a value of any size, byte by byte, to standard output",
		Example: "  prismctl kv read videos holiday > holiday.mp4",
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, key, err := c.name(args[1:])
			if err != nil {
				return err
			}
			return c.target.DataWithoutLimit(cmd.Context(), func(ctx context.Context, data *client.Client) error {
				value, err := data.ReadValue(ctx, &datav1.ReadValueRequest{Namespace: args[0], Id: id, Key: key, Offset: offset})
				if err != nil {
					return err
				}
				if value == nil {
					return fmt.Errorf("%s has no item %s", args[0], strings.Join(args[1:], " "))
				}
				defer value.Close()
				_, err = io.Copy(c.term.Out, value)
				return err
			})
		},
	}
	cmd.Flags().Uint64Var(&offset, "offset", 0, "from this byte on")
	return cmd
}

func (c *Commands) writeValue() *cobra.Command {
	var contentType, ifVersion string
	var ifAbsent, ifPresent bool
	cmd := &cobra.Command{
		Use:     "write NAMESPACE ID [KEY] FILE",
		Short:   "Write a file, or standard input for -, as a value of any size; it is visible when it is whole",
		Example: "  prismctl kv write videos holiday holiday.mp4 --content-type video/mp4\n  tar c photos | prismctl kv write backups photos -",
		Args:    cobra.RangeArgs(3, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			last := len(args) - 1
			id, key, err := c.name(args[1:last])
			if err != nil {
				return err
			}
			put := &datav1.PutRequest{Namespace: args[0], Id: id, Key: key, ContentType: contentType}
			if put.Condition, err = condition(ifAbsent, ifPresent, ifVersion); err != nil {
				return err
			}
			in := c.term.In
			if args[last] != "-" {
				file, err := os.Open(args[last])
				if err != nil {
					return err
				}
				defer file.Close()
				in = file
			}
			return c.target.DataWithoutLimit(cmd.Context(), func(ctx context.Context, data *client.Client) error {
				resp, err := data.WriteValue(ctx, put, in)
				if err != nil {
					return err
				}
				return c.term.Print(resp, func(w io.Writer) {
					terminal.Fields(w, "version", base64.StdEncoding.EncodeToString(resp.GetVersion()), "expires", terminal.Time(resp.GetExpireAt()))
				})
			})
		},
	}
	cmd.Flags().StringVar(&contentType, "content-type", "", "the media type of the value")
	conditionFlags(cmd, &ifAbsent, &ifPresent, &ifVersion)
	return cmd
}

func (c *Commands) watch() *cobra.Command {
	var prefix, after string
	cmd := &cobra.Command{
		Use:   "watch NAMESPACE ID",
		Short: "Print the changes of an id as they happen",
		Long: `Print the changes of an id as they happen, until Ctrl-C. When the namespace moves or the proxy stops, the watch goes on after
the last change. RESYNC says that changes may have been missed: read again what matters.`,
		Example: "  prismctl kv watch user-profiles alice --prefix settings/",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &datav1.WatchRequest{Namespace: args[0]}
			var err error
			if req.Id, err = c.decode(args[1]); err != nil {
				return err
			}
			if req.Prefix, err = c.decode(prefix); err != nil {
				return err
			}
			if req.StartVersion, err = base64.StdEncoding.DecodeString(after); err != nil {
				return terminal.Misusef("--after %q is not base64", after)
			}
			return c.target.DataWithoutLimit(cmd.Context(), func(ctx context.Context, data *client.Client) error {
				for e, err := range data.Watch(ctx, req) {
					if err != nil {
						return err
					}
					if err := c.term.Print(e, func(w io.Writer) { c.event(w, e) }); err != nil {
						return err
					}
				}
				return nil // as asked
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "only keys that begin so")
	cmd.Flags().StringVar(&after, "after", "", "after the change with this version (base64); default from now on")
	return cmd
}

func (c *Commands) event(w io.Writer, e *datav1.WatchEvent) {
	kind := strings.TrimPrefix(e.GetKind().String(), "WATCH_KIND_")
	text := fmt.Sprintf("%-7s %s", kind, c.show(e.GetItem().GetKey()))
	if e.GetKind() == datav1.WatchKind_WATCH_KIND_PUT {
		text += "  " + preview(bytes.TrimRight(e.GetItem().GetValue(), "\n"))
	}
	fmt.Fprintln(w, terminal.Clean(strings.TrimRight(text, " ")))
}
