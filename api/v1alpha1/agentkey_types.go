// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

func init() { register(&AgentKey{}, &AgentKeyList{}) }

// AgentKey is the public key of a node's agent, by which the other agents know that
// a message is that agent's and nobody else's. Its name is the node's. Each agent
// makes a new key pair at its start and writes the public half here; a
// ValidatingAdmissionPolicy lets the agent of that node alone do so. Without it,
// and where one of two agents has none, the gossip key is all that they go by.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=agentkeys,singular=agentkey,categories=causeway
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AgentKey struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the key. The node's agent keeps it.
	// +required
	Spec AgentKeySpec `json:"spec"`
}

// AgentKeySpec is the key of an agent.
type AgentKeySpec struct {
	// PublicKey for X25519 (RFC 7748), 32 bytes. The agent replaces it at each of
	// its starts.
	//
	// +required
	// +kubebuilder:validation:MinLength=44
	// +kubebuilder:validation:MaxLength=44
	PublicKey []byte `json:"publicKey"`
}

// AgentKeyList is a list of AgentKeys.
//
// +kubebuilder:object:root=true
type AgentKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AgentKey `json:"items"`
}
