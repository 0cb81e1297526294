package dataapi

import (
	"time"

	"google.golang.org/grpc"

	"github.com/prism-gateway/prism/dataplane/frame"
	"github.com/prism-gateway/prism/shared/fault"
)

// receiveWait bounds how long a caller's next message is waited for, where Config says nothing: longer than a slow line
// takes for one.
const receiveWait = 30 * time.Second

// receive receives a message of a stream, whose caller may be gone without a word. After an error the handler must return:
// that ends what is still received.
func (s *Server) receive(stream grpc.ServerStream) (*frame.Frame, error) {
	type message struct {
		frame *frame.Frame
		err   error
	}
	came, over := make(chan message), make(chan struct{})
	defer close(over)
	go func() { // ends with the stream, which ends with its handler
		f := &frame.Frame{}
		err := stream.RecvMsg(f)
		select {
		case came <- message{f, err}:
		case <-over:
			f.Free()
		}
	}()
	timer := time.NewTimer(s.cfg.ReceiveWait)
	defer timer.Stop()
	select {
	case m := <-came:
		return m.frame, m.err
	case <-timer.C:
		return nil, fault.Newf(fault.DeadlineExceeded, fault.Queue, "nothing was received for %v", s.cfg.ReceiveWait).WithOutcome(fault.NotApplied)
	}
}
