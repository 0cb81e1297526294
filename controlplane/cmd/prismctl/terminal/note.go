package terminal

import (
	"os/user"

	"github.com/spf13/cobra"

	controlv1 "github.com/prism-gateway/prism/protos/prism/control/v1"
)

// Note are the flags that say who changes something and why.
type Note struct {
	Author, Message string
}

// Register adds the flags to a command that changes something.
func (n *Note) Register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&n.Message, "message", "m", "", "why; kept with the snapshot")
	cmd.Flags().StringVar(&n.Author, "author", "", "who; default the user of this machine (environment: PRISM_AUTHOR)")
}

// Proto returns the note as it is sent.
func (n *Note) Proto(t *Terminal) *controlv1.ChangeNote {
	author := n.Author
	if author == "" {
		author = t.Getenv("PRISM_AUTHOR")
	}
	if author == "" {
		if u, err := user.Current(); err == nil { // without a name the note has no author
			author = u.Username
		}
	}
	return &controlv1.ChangeNote{Author: author, Message: n.Message}
}
