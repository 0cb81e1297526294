package kv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/prism-gateway/prism/controlplane/cmd/prismctl/terminal"
	datav1 "github.com/prism-gateway/prism/protos/prism/data/v1"
	"github.com/prism-gateway/prism/shared/client"
	"github.com/prism-gateway/prism/shared/fault/faultgrpc"
)

// chunkBytes is how much of a large value one message carries.
const chunkBytes = 256 << 10

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
				stream, err := data.KeyValue.ReadValue(ctx, &datav1.ReadValueRequest{Namespace: args[0], Id: id, Key: key, Offset: offset})
				if err != nil {
					return err
				}
				for first := true; ; first = false {
					in, err := stream.Recv()
					switch {
					case errors.Is(err, io.EOF) && !first:
						return nil
					case err != nil:
						return err
					case first && in.GetItem() == nil:
						return fmt.Errorf("%s has no item %s", args[0], strings.Join(args[1:], " "))
					}
					if _, err := c.term.Out.Write(in.GetChunk()); err != nil {
						return err
					}
				}
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
				resp, err := send(ctx, data.KeyValue, put, in)
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

// send writes a value in chunks, with its checksum at the end.
func send(ctx context.Context, kv datav1.KeyValueClient, put *datav1.PutRequest, in io.Reader) (*datav1.WriteValueResponse, error) {
	stream, err := kv.WriteValue(ctx)
	if err != nil {
		return nil, err
	}
	sum, chunk := sha256.New(), make([]byte, chunkBytes)
	out := &datav1.WriteValueRequest{Put: put}
	for {
		n, err := io.ReadFull(in, chunk)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return nil, err
		}
		sum.Write(chunk[:n])
		if out.Chunk = chunk[:n]; ended {
			out.Sha256 = sum.Sum(nil)
		}
		if err := stream.Send(out); err != nil && !errors.Is(err, io.EOF) { // at EOF the answer tells why
			return nil, err
		} else if ended || err != nil {
			return stream.CloseAndRecv()
		}
		out = &datav1.WriteValueRequest{}
	}
}

// watchPause is how long a watch that was ended waits before it goes on.
const watchPause = 200 * time.Millisecond

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
				for {
					err := c.follow(ctx, data.KeyValue, req)
					if ctx.Err() != nil {
						return nil // as asked
					}
					if status.Code(err) != codes.Unavailable {
						return err
					}
					if f := faultgrpc.FromStatus(err); len(req.GetStartVersion()) == 0 && f.Metadata["start_version"] != "" {
						req.StartVersion, _ = base64.StdEncoding.DecodeString(f.Metadata["start_version"]) // else from now on
					}
					c.term.Note("%s; the watch goes on", status.Convert(err).Message())
					select {
					case <-ctx.Done():
						return nil
					case <-time.After(watchPause):
					}
				}
			})
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "", "only keys that begin so")
	cmd.Flags().StringVar(&after, "after", "", "after the change with this version (base64); default from now on")
	return cmd
}

// follow prints changes until the stream ends, and notes the last in req.
func (c *Commands) follow(ctx context.Context, kv datav1.KeyValueClient, req *datav1.WatchRequest) error {
	stream, err := kv.Watch(ctx, req)
	if err != nil {
		return err
	}
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, e := range in.GetEvents() {
			if v := e.GetItem().GetVersion(); len(v) > 0 {
				req.StartVersion = v
			}
			if err := c.term.Print(e, func(w io.Writer) { c.event(w, e) }); err != nil {
				return err
			}
		}
	}
}

func (c *Commands) event(w io.Writer, e *datav1.WatchEvent) {
	kind := strings.TrimPrefix(e.GetKind().String(), "WATCH_KIND_")
	text := fmt.Sprintf("%-7s %s", kind, c.show(e.GetItem().GetKey()))
	if e.GetKind() == datav1.WatchKind_WATCH_KIND_PUT {
		text += "  " + preview(bytes.TrimRight(e.GetItem().GetValue(), "\n"))
	}
	fmt.Fprintln(w, terminal.Clean(strings.TrimRight(text, " ")))
}
